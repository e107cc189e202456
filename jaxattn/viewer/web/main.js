/* Puts the page together. */

function aboutReading(reading) {
  const tokens = reading.same ? plural(reading.t, "token") : `${plural(reading.t, "query")}, ${plural(reading.s, "key")}`;
  const facts = [reading.name, plural(reading.layers, "layer"), `${plural(reading.heads, "head")} each`, tokens, ...(reading.isCausal ? ["causal"] : [])];
  return facts.filter(Boolean).join(" \u00b7 ");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  variables = new Map();
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function buildPanel(reading, place) {
  const grid = make("div", { class: "grid", role: "group", "aria-label": "Heads. Arrow keys move between them." });
  const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "map of weights" });
  const title = make("h3");
  const badges = make("span");
  const name = () => {
    title.textContent = headName(state.layer, state.head);
    badges.replaceChildren(...reading.names[state.layer][state.head].flatMap((text) => [make("span", { class: "badge" }, text), " "]));
  };
  listen(["layer", "head"], name);
  name();
  place.append(make("div", { class: "panel" },
    ...(readings.length > 1 ? [make("h3", { class: "panel-title" }, reading.title)] : []),
    make("div", {}, make("div", { class: "part-head" }, make("h3", {}, "All heads"), saveButtons("the grid", (kind) => saveGrid(reading, kind))), grid, buildSummary(reading)),
    make("div", {}, make("div", { class: "part-head" }, make("div", { class: "named" }, title, badges), saveButtons("the map", (kind) => saveMap(reading, kind))), make("div", { class: "map" }, canvas))));
  new Grid(reading, grid);
  return new HeadMap(reading, canvas);
}

/** The chosen head in numbers and, as far as they tell, in words. */
function buildSummary(reading) {
  const place = make("div", { class: "summary" });
  const write = () => {
    const { layer, head } = state;
    const known = STATISTICS.filter(([name]) => reading.statistic(name, layer, head) !== null && !(name === "next" && reading.isCausal));
    const list = known.map(([name, title, help]) => make("div", { title: help }, make("dt", {}, title), make("dd", { class: "number" }, shortNumber(reading.statistic(name, layer, head)))));
    place.replaceChildren(make("h3", {}, headName(layer, head)), make("p", {}, wordsOfHead(reading, layer, head)), make("dl", {}, ...list));
  };
  listen(["layer", "head"], write);
  write();
  return place;
}

function wordsOfHead(reading, layer, head) {
  const names = reading.names[layer][head];
  const says = {
    "previous-token head": "Most of a token's weight goes to the token right before it.",
    "self head": "Most of a token's weight stays on the token itself.",
    "next-token head": "Most of a token's weight goes to the token right after it.",
    "induction head": "Where a token has come before, most weight goes to what came next that time.",
    "sink head": "Most weight goes to the first token, where heads tend to rest that have nothing to look for.",
    "averaging head": "All tokens that may be seen get nearly the same weight: the head takes their average.",
  };
  if (names.length) return names.map((name) => says[name]).join(" ");
  const spread = reading.statistic("spread", layer, head);
  if (spread === null) return "";
  const even = Math.round(100 * spread);
  return `Its weights have ${even} % of the entropy that equal weights would have: ${even < 35 ? "each token looks at few others" : even < 75 ? "some tokens stand out" : "they are spread widely"}.`;
}

function exactness(reading) {
  const cells = reading.pooled
    ? `A cell of a map stands for ${reading.down} \u00d7 ${reading.across} pairs. ${POOLED[reading.peak]}`
    : "Every pair of tokens has a cell of its own.";
  return `${cells} Cells are stored in 8 bits on a logarithmic scale: a number read from one is right to 2.3 %, and those below ${shortNumber(description.floor)} are shown as that. Entropies, weights received and top keys are float32, as they were computed. Everything is in this file: it loads nothing and sends nothing.`;
}

function buildControls() {
  options(byId("order"), ORDERS, state.order);
  options(byId("scale"), SCALES, state.scale);
  byId("order").addEventListener("change", (event) => change({ order: event.target.value }));
  byId("scale").addEventListener("change", (event) => change({ scale: event.target.value }));
  byId("theme").addEventListener("click", () => {
    themeIsChosen = true;
    change({ theme: state.theme === "dark" ? "light" : "dark" });
  });
  byId("link").addEventListener("click", copyLink);
  listen(["order"], () => { byId("order").value = state.order; });
  listen(["scale"], () => { byId("scale").value = state.scale; });
  listen(["scale", "theme"], drawLegend);
  new ResizeObserver(drawLegend).observe(byId("legend").parentElement);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => { if (!themeIsChosen) change({ theme: dark.matches ? "dark" : "light" }); });
}

async function copyLink() {
  const link = location.href.split("#")[0] + linkOfView();
  try {
    await navigator.clipboard.writeText(link);
    byId("link").textContent = "Copied";
  } catch {
    writeLink(); // it is in the address bar
    byId("link").textContent = "Link is in the address bar";
  }
  setTimeout(() => { byId("link").textContent = "Copy link to this view"; }, 2000);
}

/** Which of two readings the walk, the next tokens and the table are of. */
function buildSides() {
  if (readings.length < 2) return;
  const buttons = readings.map((reading, side) => make("button", { type: "button", onclick: () => change({ side }) }, reading.title));
  const mark = () => buttons.forEach((button, side) => button.setAttribute("aria-pressed", side === state.side));
  listen(["side"], mark);
  mark();
  const row = make("div", { class: "controls", role: "group", "aria-label": "Which one is opened below" }, "Opened below: ", ...buttons);
  byId("walk").insertBefore(row, byId("walk").firstChild);
}

let walk = null;

async function start() {
  readings.push(...description.readings.map((_, side) => new Reading(side)));
  byId("title").textContent = description.title;
  const pooled = readings.some((reading) => reading.pooled);
  state.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  state.scale = pooled ? "log" : "root";
  state.query = readings[0].t - 1;
  defaults = { ...state };
  Object.assign(state, readLink(location.hash));
  setTheme(state.theme);
  await Promise.all(readings.map((reading) => reading.load()));
  byId("about").append(...readings.map((reading) => make("span", { class: "line" }, aboutReading(reading))));
  listen(["theme"], () => setTheme(state.theme)); // before all that draws
  buildControls();
  byId("panels").className = readings.length > 1 ? "panels two" : "panels one";
  const maps = readings.map((reading) => buildPanel(reading, byId("panels")));
  drawLegend();
  await Promise.all(maps.map((map) => map.draw()));
  document.documentElement.dataset.painted = String(Math.round(performance.now()));
  byId("looking-lead").textContent = "Point at a token: of the keys, those light up that it looks at, and of the queries, those that look at it. Click to keep it. The head is the one chosen above.";
  const strips = byId("strips");
  strips.className = readings.length > 1 ? "panels two" : "";
  for (const reading of readings) {
    const place = make("div");
    strips.append(place);
    buildStrips(reading, place);
  }
  buildSides();
  new Table(byId("table"));
  walk = new Walk(byId("steps"));
  await walk.build();
  await new Next(byId("next-tokens")).show();
  byId("exactness").textContent = exactness(readings[0]);
  addEventListener("hashchange", () => change(readLink(location.hash)));
  document.documentElement.dataset.ready = "true";
}

start();
