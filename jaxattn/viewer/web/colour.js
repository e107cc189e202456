/* Which number has which colour. Python has the same in `_colours.py`, and the tests compare them. */

const HIDDEN = 0, NOT_A_NUMBER = 1, LOWEST = 2, CODES = 256;
const LOG_DECADES = 3;

const SCALES = {
  log: "logarithmic, 3 decades",
  root: "square root",
  linear: "linear",
};

function bytesOfHex(text) {
  return Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16));
}

const VIRIDIS = bytesOfHex(description.viridis);

/** What a byte of a map stands for; NaN for what is hidden or not a number. */
const WEIGHT_OF_CODE = Float64Array.from({ length: CODES }, (_, code) => {
  if (code < LOWEST) return NaN;
  if (code === LOWEST) return 0;
  return 10 ** (description.decades * ((code - LOWEST) / (CODES - 1 - LOWEST) - 1));
});

function themeColours() {
  return description.themes[state.theme === "dark" ? "dark" : "light"];
}

/** Where a weight is on the colour scale, from 0 to 1. */
function onScale(weight, scale, most) {
  const share = weight / most;
  if (scale === "linear") return Math.min(share, 1);
  if (scale === "root") return Math.min(Math.sqrt(share), 1);
  return share <= 0 ? 0 : Math.min(Math.max(1 + Math.log10(share) / LOG_DECADES, 0), 1);
}

/** The weight at a place on the colour scale. */
function fromScale(place, scale, most) {
  if (scale === "linear") return place * most;
  if (scale === "root") return place * place * most;
  return most * 10 ** (LOG_DECADES * (place - 1));
}

function viridisAt(place) {
  const i = 3 * Math.floor(place * 255 + 0.5);
  return [VIRIDIS[i], VIRIDIS[i + 1], VIRIDIS[i + 2]];
}

/** The colour of a weight; null for what is hidden. */
function colourOfWeight(weight, scale, most) {
  if (weight === null) return [...bytesOfHex(themeColours().hidden)];
  if (Number.isNaN(weight)) return [...bytesOfHex(themeColours().nan)];
  return viridisAt(onScale(weight, scale, most));
}

/** The colours of all bytes of a map, as the numbers that an ImageData has for its pixels. */
function coloursOfCodes(scale, most) {
  const table = new Uint8ClampedArray(4 * CODES);
  for (let code = 0; code < CODES; code++) {
    const weight = code === HIDDEN ? null : WEIGHT_OF_CODE[code];
    table.set([...colourOfWeight(weight, scale, most), 255], 4 * code);
  }
  return new Uint32Array(table.buffer);
}

/** The colour of a signed number from -1 to 1; null for what is hidden. */
function signedColour(x) {
  const theme = themeColours();
  if (x === null) return [...bytesOfHex(theme.hidden)];
  if (Number.isNaN(x)) return [...bytesOfHex(theme.nan)];
  const zero = bytesOfHex(theme.zero);
  const end = bytesOfHex(x < 0 ? theme.negative : theme.positive);
  const far = Math.min(Math.abs(x), 1);
  return [0, 1, 2].map((i) => Math.floor(zero[i] + far * (end[i] - zero[i]) + 0.5));
}

const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

/** Black or white, whichever can be read on a colour. */
function inkOn([r, g, b]) {
  const linear = [r, g, b].map((x) => (x <= 10 ? x / 3294 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.179 ? "#000000" : "#ffffff";
}
