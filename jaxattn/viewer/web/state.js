/* What is being looked at. A change is told once a frame to those who listen to it. */

const CHOICES = ["layer", "head", "query", "key", "order", "scale", "theme", "at", "temperature", "side"];

/**
 * layer, head: the chosen head. query, key: the chosen tokens, or null. hover: {query, key} under
 * the pointer, or null. side: which of two readings. at: the position whose next token is shown.
 */
const state = {
  layer: 0, head: 0, query: null, key: null, order: "layer", scale: "root", theme: "light",
  at: null, temperature: null, side: 0, hover: null,
};

const listeners = [];
let changed = new Set();

/** Calls `listener(changed)` in the frame after any of `names` changed. */
function listen(names, listener) {
  listeners.push([names, listener]);
}

/** `update`, put off while `element` is far from the screen: what nobody sees costs nothing. */
function whenSeen(element, update) {
  let [seen, due] = [true, false];
  new IntersectionObserver((entries) => {
    seen = entries.at(-1).isIntersecting;
    if (seen && due) {
      due = false;
      update();
    }
  }, { rootMargin: "200px" }).observe(element);
  return () => {
    if (seen) update();
    else due = true;
  };
}

function change(patch) {
  for (const [name, value] of Object.entries(patch)) {
    const same = name === "hover"
      ? JSON.stringify(state.hover) === JSON.stringify(value)
      : state[name] === value;
    if (same) continue;
    state[name] = value;
    if (!changed.size) requestAnimationFrame(tell);
    changed.add(name);
  }
}

function tell() {
  const now = changed;
  changed = new Set();
  for (const [names, listener] of listeners) if (names.some((name) => now.has(name))) listener(now);
  if (CHOICES.some((name) => now.has(name))) writeLink();
}

/** The query and the key to show: under the pointer, else the chosen ones. */
function focusOf() {
  return state.hover ?? { query: state.query, key: state.key };
}

function linkOfView() {
  const parts = [`head=${state.layer}.${state.head}`];
  for (const name of ["query", "key", "order", "scale", "at", "temperature", "side"]) {
    if (state[name] !== null && state[name] !== defaults[name]) parts.push(`${name}=${state[name]}`);
  }
  if (themeIsChosen) parts.push(`theme=${state.theme}`);
  return `#${parts.join("&")}`;
}

let defaults = {};
let themeIsChosen = false;

function writeLink() {
  try {
    history.replaceState(null, "", linkOfView());
  } catch {
    // A frame without an address of its own, as in a notebook.
  }
}

/** The view that an address tells; what is not in the page is left as it is. */
function readLink(hash) {
  const told = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  const found = {};
  const whole = (text, end) => (/^\d+$/.test(text ?? "") && Number(text) < end ? Number(text) : null);
  const side = whole(told.side, readings.length) ?? 0;
  const reading = readings[side];
  const [layer, head] = (told.head ?? "").split(".").map((x, i) => whole(x, i ? reading.heads : reading.layers));
  if (layer !== null && layer !== undefined && head !== null && head !== undefined) Object.assign(found, { layer, head });
  found.side = side;
  for (const [name, end] of [["query", reading.t], ["key", reading.s], ["at", reading.t]]) {
    const value = whole(told[name], end);
    if (value !== null) found[name] = value;
  }
  if (told.order in ORDERS) found.order = told.order;
  if (told.scale in SCALES) found.scale = told.scale;
  if (told.temperature && Number(told.temperature) > 0) found.temperature = Number(told.temperature);
  if (told.theme === "light" || told.theme === "dark") {
    found.theme = told.theme;
    themeIsChosen = true;
  }
  return found;
}
