/* Elements and numbers as text. Text of the input only ever becomes text, never markup. */

const byId = (id) => document.getElementById(id);

/** An element: make("p", { class: "soft" }, "text", child). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function options(select, choices, chosen) {
  select.replaceChildren(...Object.entries(choices).map(([value, text]) => make("option", { value }, text)));
  select.value = chosen;
}

/** A weight in a few digits: 0.0312, 3.1e-5. */
function shortNumber(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "\u2013";
  if (!Number.isFinite(x)) return x < 0 ? "\u2212\u221e" : "\u221e";
  const size = Math.abs(x);
  const text = size !== 0 && (size < 0.001 || size >= 100000) ? x.toExponential(1) : size >= 100 ? x.toFixed(1) : x.toPrecision(3);
  return text.replace("-", "\u2212");
}

/** An exact weight, in four digits. */
const exactNumber = (x) => (x !== 0 && x < 0.001 ? x.toExponential(3).replace("-", "\u2212") : x.toPrecision(4));

/** A tick of a scale, in as few digits as tell it. */
const tick = (x) => String(Number(x.toPrecision(2)));

/** A number with so many decimals. */
function fixed(x, decimals = 3) {
  if (!Number.isFinite(x)) return shortNumber(x);
  return x.toFixed(decimals).replace("-", "\u2212");
}

const count = (n) => n.toLocaleString("en");
const plural = (n, word) => `${count(n)} ${n === 1 ? word : word === "query" ? "queries" : `${word}s`}`;
const cut = (text, most = 14) => ([...text].length > most ? `${[...text].slice(0, most - 1).join("")}\u2026` : text);

/** A canvas whose pixels are those of the screen; returns its context, to draw in CSS pixels. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

let variables = new Map();

/** A variable of the style sheet. It is asked for once a theme: asking makes the browser lay out. */
function variable(name) {
  if (!variables.has(name)) {
    variables.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  }
  return variables.get(name);
}
