/* The large map of the chosen head: received mass above, entropy at the side. */

const MARGIN = { received: 44, entropy: 56, gap: 7 };

/** Where everything of a map is, in CSS pixels, for a picture of a width. */
function layoutOfMap(reading, width) {
  const rowNames = Math.min(104, Math.max(...labelsShown(reading.queryNames, reading).map((x) => textWidth(cut(x), 11)), 18));
  const columnNames = Math.min(104, Math.max(...labelsShown(reading.keyNames, reading).map((x) => textWidth(cut(x), 11)), 18));
  const left = 22 + rowNames + 8;
  const right = MARGIN.gap + MARGIN.entropy + 4;
  const top = 20 + MARGIN.received + MARGIN.gap;
  const ratio = window.devicePixelRatio || 1;
  const room = Math.min((width - left - right) / reading.columns, 900 / reading.rows, 56);
  const cell = room >= 3 ? Math.floor(room * ratio) / ratio : Math.max(room, 0.25);
  const steep = cell < 17;
  const bottom = (steep ? columnNames : columnNames * 0.71 + 8) + 30;
  return {
    width, left, top, cell, steep,
    mapWidth: cell * reading.columns,
    mapHeight: cell * reading.rows,
    height: top + cell * reading.rows + bottom,
    labelEnd: bottom - 24,
  };
}

/** A few names stand for all where there are too many to measure. */
function labelsShown(tokens, reading) {
  return reading.pooled ? [String(tokens.length)] : tokens;
}

/** The largest entropy that a query of a row could have, in nats. */
const fullEntropy = (reading, layer, head, query) => Math.log(Math.max(reading.keysSeen(layer, head, query), 1));

/** Mean entropies of the rows of a map, and the largest that they could be. */
function entropyOfRows(reading, layer, head) {
  return Array.from({ length: reading.rows }, (_, row) => {
    const [from, to] = reading.queriesOf(row);
    let [sum, full, many] = [0, 0, to - from + 1];
    for (let query = from; query <= to; query++) {
      sum += reading.entropyOf(layer, head, query);
      full += fullEntropy(reading, layer, head, query);
    }
    return { entropy: sum / many, full: full / many };
  });
}

/** The mass that the keys of each column receive together. */
function receivedByColumns(reading, layer, head) {
  return Array.from({ length: reading.columns }, (_, column) => {
    const [from, to] = reading.keysOf(column);
    let sum = 0;
    for (let key = from; key <= to; key++) sum += reading.receivedOf(layer, head, key);
    return sum;
  });
}

function paintMap(pen, reading, layer, head, at) {
  const [ink, soft, line] = [variable("--ink"), variable("--soft"), variable("--line")];
  pen.rect(0, 0, at.width, at.height, variable("--paper"));
  const table = coloursOfCodes(state.scale, mostWeight());
  const source = pixelsOfHead(reading, layer, head, table);
  pen.image(source, at.left, at.top, at.mapWidth, at.mapHeight, at.cell < 1);
  if (at.cell >= 30 && reading.columns <= 12) paintNumbers(pen, reading, layer, head, at);
  paintReceived(pen, reading, layer, head, at, { soft, line });
  paintEntropy(pen, reading, layer, head, at, { soft, line });
  paintNames(pen, reading, at, { ink, soft });
}

function paintNumbers(pen, reading, layer, head, at) {
  for (let row = 0; row < reading.rows; row++) {
    for (let column = 0; column < reading.columns; column++) {
      const approximate = reading.weight(layer, head, row, column);
      if (approximate === null || Number.isNaN(approximate)) continue;
      const weight = reading.exactWeight(layer, head, row, column) ?? approximate;
      const colour = inkOn(colourOfWeight(approximate, state.scale, mostWeight()));
      const [x, y] = [at.left + (column + 0.5) * at.cell, at.top + (row + 0.5) * at.cell];
      pen.text(x, y, weight < 0.005 ? "0" : weight.toFixed(2).replace(/^0/, ""), { colour, size: 10.5, align: "middle" });
    }
  }
}

function paintReceived(pen, reading, layer, head, at, { soft, line }) {
  const mass = receivedByColumns(reading, layer, head);
  const most = Math.max(...mass.filter(Number.isFinite), 1e-9);
  const base = at.top - MARGIN.gap;
  mass.forEach((x, column) => {
    const height = Number.isFinite(x) ? (x / most) * MARGIN.received : 0;
    const width = at.cell > 4 ? at.cell - 1 : at.cell;
    pen.rect(at.left + column * at.cell, base - height, width, height, soft);
  });
  pen.line([[at.left, base + 0.5], [at.left + at.mapWidth, base + 0.5]], line);
  const what = at.mapWidth > 190 ? "weight received" : "received";
  pen.text(at.left, 9, `${what}, up to ${shortNumber(most)}`, { colour: soft });
}

function paintEntropy(pen, reading, layer, head, at, { soft, line }) {
  const rows = entropyOfRows(reading, layer, head);
  const most = Math.max(...rows.map(({ full }) => full), 1e-9);
  const left = at.left + at.mapWidth + MARGIN.gap;
  rows.forEach(({ entropy, full }, row) => {
    const y = at.top + row * at.cell, height = at.cell > 4 ? at.cell - 1 : at.cell;
    pen.rect(left, y, (full / most) * MARGIN.entropy, height, line);
    if (Number.isFinite(entropy)) pen.rect(left, y, (entropy / most) * MARGIN.entropy, height, soft);
  });
  pen.text(left, at.top - 22, "entropy", { colour: soft });
  pen.text(left, at.top - 9, `0\u2013${most.toFixed(1)}`, { colour: soft });
}

function paintNames(pen, reading, at, { ink, soft }) {
  const middle = (i) => (i + 0.5) * at.cell;
  const every = (size) => Math.max(1, Math.ceil(size / at.cell));
  const name = (tokens, i, pooled) => (pooled ? count(i) : cut(tokens[i]));
  const rowStep = every(reading.down > 1 ? 40 : 12.5);
  for (let row = 0; row < reading.rows; row += rowStep) {
    const text = name(reading.queryNames, reading.queriesOf(row)[0], reading.down > 1);
    pen.text(at.left - 7, at.top + middle(row), text, { colour: ink, align: "end" });
  }
  const columnStep = every(reading.across > 1 ? 40 : 12.5);
  const bottom = at.top + at.mapHeight + 8;
  for (let column = 0; column < reading.columns; column += columnStep) {
    const text = name(reading.keyNames, reading.keysOf(column)[0], reading.across > 1);
    pen.text(at.left + middle(column), bottom, text, { colour: ink, align: "end", angle: at.steep ? -90 : -45 });
  }
  const unit = (pooled) => (pooled ? ", by position" : "");
  pen.text(at.left + at.mapWidth / 2, at.height - 8, `Key (columns)${unit(reading.across > 1)}`, { colour: soft, align: "middle" });
  pen.text(9, at.top + at.mapHeight / 2, `Query (rows)${unit(reading.down > 1)}`, { colour: soft, align: "middle", angle: -90 });
}

/** What a cell of several pairs shows, of a map of peaks or not. */
const POOLED = {
  true: "Peak: the largest weight of the pairs here.",
  false: "Mean share: what a query here gives to the keys here together.",
};

/** What is said of a cell of a map: lines of text. */
function wordsOfCell(reading, layer, head, row, column) {
  const weight = reading.weight(layer, head, row, column);
  const [queries, keys] = [reading.queriesOf(row), reading.keysOf(column)];
  const many = reading.pairsIn(layer, head, row, column);
  const exact = reading.pooled ? null : reading.exactWeight(layer, head, row, column);
  const words = { query: passage(reading.tokens, queries), key: passage(reading.keys, keys), exact: exact !== null };
  if (weight === null) return { ...words, weight: "hidden", how: "No query here may see a key here." };
  if (Number.isNaN(weight)) return { ...words, weight: "not a number", how: "The weights here are NaN." };
  if (exact !== null) return { ...words, weight: exact.toPrecision(6), how: "Exact: one of this query's top keys." };
  const floor = weight === 0;
  const shown = floor ? `\u2264 ${shortNumber(description.floor)}` : `\u2248 ${shortNumber(weight)}`;
  const quantised = "Cells are quantised to 8 bits of a logarithmic scale, to 2.3 %.";
  if (!reading.pooled) return { ...words, weight: shown, how: quantised };
  return { ...words, weight: shown, how: `${POOLED[reading.peak]} ${plural(many, "pair")} pooled. ${quantised}` };
}

class HeadMap {
  constructor(reading, canvas) {
    this.reading = reading;
    this.canvas = canvas;
    this.base = document.createElement("canvas");
    canvas.addEventListener("pointermove", (event) => this.onPointer(event));
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("click", (event) => this.onClick(event));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", hideTip);
    listen(["layer", "head", "scale", "theme"], () => this.draw());
    listen(["hover", "query", "key"], () => this.drawFocus());
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  async draw() {
    const { layer, head } = state;
    const width = this.canvas.parentElement.clientWidth;
    if (!width) return;
    await this.reading.loadLayer(layer);
    if (layer !== state.layer || head !== state.head) return; // another was chosen meanwhile
    this.at = layoutOfMap(this.reading, width);
    paintMap(new CanvasPen(sized(this.base, width, this.at.height)), this.reading, layer, head, this.at);
    this.canvas.setAttribute("aria-label", `${headName(layer, head)}: map of ${plural(this.reading.t, "query")} by ${plural(this.reading.s, "key")}. Arrow keys move over it.`);
    this.drawFocus();
  }

  /** The map with the row and column that are looked at. */
  drawFocus() {
    if (!this.at) return;
    const { at, reading } = this;
    const context = sized(this.canvas, at.width, at.height);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.base, 0, 0);
    context.restore();
    const { query, key } = focusOf();
    const pen = new CanvasPen(context), accent = variable("--accent");
    const thick = Math.max(at.cell, 2);
    if (query !== null && query < reading.t) {
      const y = at.top + reading.rowOf(query) * at.cell;
      haloed(pen, [at.left - 2, y - 2, at.mapWidth + 4, thick + 4], accent);
    }
    if (key !== null && key < reading.s) {
      const x = at.left + reading.columnOf(key) * at.cell;
      haloed(pen, [x - 2, at.top - 2, thick + 4, at.mapHeight + 4], accent);
    }
  }

  /** The cell at a point of the screen, or null. */
  cellAt(event) {
    if (!this.at) return null;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.at.left) / this.at.cell);
    const row = Math.floor((event.clientY - box.top - this.at.top) / this.at.cell);
    const inside = row >= 0 && column >= 0 && row < this.reading.rows && column < this.reading.columns;
    return inside ? [row, column] : null;
  }

  /** The query that stands for a row, and the key that stands for a column. */
  pairOf([row, column]) {
    return { query: this.reading.topQueries[row], key: this.reading.keysOf(column)[0] };
  }

  onPointer(event) {
    const cell = this.cellAt(event);
    if (!cell) return this.leave();
    change({ hover: this.pairOf(cell) });
    this.tip(event.clientX, event.clientY, cell);
  }

  leave() {
    hideTip();
    change({ hover: null });
  }

  onClick(event) {
    const cell = this.cellAt(event);
    if (cell) change(this.pairOf(cell));
  }

  tip(x, y, [row, column]) {
    const { reading } = this;
    const { layer, head } = state;
    if (!reading.perLayer[layer]) return;
    const words = wordsOfCell(reading, layer, head, row, column);
    const tops = reading.topsOf(layer, head, reading.queriesOf(row)[1]);
    const list = tops.list.slice(0, 5).map((top) => make("tr", {},
      make("td", {}, `${cut(reading.keys[top.key])} (${count(top.key)})`),
      make("td", { class: "number" }, exactNumber(top.weight))));
    const whose = reading.pooled ? `Top keys of query ${count(tops.query)}, exact` : "Its top keys, exact";
    showTip(x, y,
      make("p", {}, "query ", make("strong", {}, words.query)),
      make("p", {}, "key ", make("strong", {}, words.key)),
      make("p", {}, "weight ", make("strong", { class: "number" }, words.weight)),
      make("p", { class: "soft" }, words.how),
      ...(list.length ? [make("p", { class: "soft" }, whose), make("table", {}, ...list)] : []));
    announce(`Query ${words.query}, key ${words.key}, weight ${words.weight}`);
  }

  onKey(event) {
    const { reading } = this;
    const [row, column] = [reading.rowOf(state.query ?? reading.t - 1), reading.columnOf(state.key ?? 0)];
    const moves = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, 0], End: [row, reading.columns - 1], PageUp: [0, column], PageDown: [reading.rows - 1, column],
    };
    if (event.key === "Escape") {
      hideTip();
      return change({ query: null, key: null });
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const clamp = (x, end) => Math.min(Math.max(x, 0), end - 1);
    const cell = [clamp(moves[event.key][0], reading.rows), clamp(moves[event.key][1], reading.columns)];
    change(this.pairOf(cell));
    const box = this.canvas.getBoundingClientRect();
    this.tip(box.left + this.at.left + (cell[1] + 1) * this.at.cell, box.top + this.at.top + (cell[0] + 1) * this.at.cell, cell);
  }
}
