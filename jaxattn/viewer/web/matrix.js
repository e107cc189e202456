/* Pictures of the walk: a matrix of numbers, and a row of bars. */

const NAME_WIDTH = 96;

/** A weight in a cell: two digits, and those that begin with zeros by their size. */
const weightText = (x) => (x >= 0.005 || x === 0 ? x.toFixed(2).replace(/^0(?=\.)/, "") : x.toExponential(0).replace("-", "\u2212"));

/** A matrix as a picture, with the names of its rows and, if it has them, of its columns. */
class Matrix {
  constructor({ id, caption, rows, values, columns = null, weights = false, group = null, mark, left }) {
    Object.assign(this, { id, caption, rows, values, columns, weights, mark, left });
    this.most = group ?? largestOf(values);
    this.clipped = largestOf(values) > this.most;
    this.canvas = make("canvas", { role: "img", "data-matrix": id });
    this.label = make("figcaption");
    this.figure = make("figure", {}, this.label, this.canvas);
    this.base = document.createElement("canvas");
    this.canvas.addEventListener("pointermove", (event) => this.onPointer(event));
    this.canvas.addEventListener("pointerleave", () => { hideTip(); change({ hover: null }); });
    this.canvas.addEventListener("click", (event) => {
      const at = this.cellAt(event);
      if (at) change(Object.fromEntries(Object.entries(this.mark.pair(...at)).filter(([, x]) => x !== null)));
    });
  }

  /** Draws into so much width, with cells of at most some size. */
  draw(room) {
    const many = this.values[0].length;
    const { left } = this;
    const most = this.columns ? 44 : many <= 80 ? 10 : 3;
    this.cell = Math.max(Math.min((room - left - 2) / many, most), 0.2);
    if (this.cell > 3) this.cell = Math.floor(this.cell);
    this.tall = this.columns ? this.cell : Math.floor(Math.max(12, Math.min(20, 240 / this.rows.length)));
    const steep = this.cell < 17;
    const names = this.columns ? Math.min(NAME_WIDTH, Math.max(...this.columns.map((x) => textWidth(cut(x, 12), 11)))) : 0;
    const bottom = this.columns ? (steep ? names : names * 0.71 + 8) + 12 : 4;
    this.width = left + this.cell * many + 2;
    this.height = this.tall * this.rows.length + bottom;
    this.canvas.style.width = `${this.width}px`;
    const pen = new CanvasPen(sized(this.base, this.width, this.height));
    this.paint(pen, steep);
    this.label.textContent = `${this.caption} \u00b7 ${this.range()}`;
    this.canvas.setAttribute("aria-label", `${this.caption}, ${this.rows.length} by ${many}, ${this.range()}`);
    this.drawMark();
  }

  range() {
    if (this.clipped) return `\u2212${shortNumber(this.most)} to ${shortNumber(this.most)}, a few beyond`;
    return this.weights ? `coloured as the map, ${SCALES[state.scale]}` : `\u2212${shortNumber(this.most)} to ${shortNumber(this.most)}`;
  }

  colour(value) {
    if (this.weights) return colourOfWeight(value, state.scale, mostWeight());
    return signedColour(value === null ? null : value / this.most);
  }

  paint(pen, steep) {
    const { cell, tall, left } = this;
    const ink = variable("--ink");
    pen.context.clearRect(0, 0, this.width, this.height);
    this.values.forEach((row, i) => {
      pen.text(left - 6, (i + 0.5) * tall, cut(this.rows[i], 12), { colour: ink, align: "end" });
      row.forEach((value, j) => {
        const colour = this.colour(value);
        pen.rect(left + j * cell, i * tall, cell + (cell < 3 ? 0.5 : 0), tall, css(colour));
        if (!this.columns || cell < 32 || row.length > 12 || value === null) return;
        const text = this.weights ? weightText(value) : fixed(value, Math.abs(value) < 10 ? 1 : 0);
        pen.text(left + (j + 0.5) * cell, (i + 0.5) * tall, text, { colour: inkOn(colour), size: 10.5, align: "middle" });
      });
    });
    this.columns?.forEach((name, j) => {
      if (cell < 11 && j % Math.ceil(12 / cell)) return;
      const at = [left + (j + 0.5) * cell, this.rows.length * tall + 8];
      pen.text(...at, cut(name, 12), { colour: ink, align: "end", angle: steep ? -90 : -45 });
    });
  }

  drawMark() {
    if (!this.cell) return;
    const context = sized(this.canvas, this.width, this.height);
    context.clearRect(0, 0, this.width, this.height);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.base, 0, 0);
    context.restore();
    const [row, column] = this.mark.at();
    const pen = new CanvasPen(context), accent = variable("--accent");
    const { cell, tall, left } = this;
    if (row !== null && row >= 0) {
      const box = this.columns && column !== null && column >= 0
        ? [left + column * cell, row * tall, cell, tall]
        : [left, row * tall, this.values[0].length * cell, tall];
      haloed(pen, box, accent);
    }
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const shrunk = box.width / this.width;
    const j = Math.floor(((event.clientX - box.left) / shrunk - this.left) / this.cell);
    const i = Math.floor((event.clientY - box.top) / this.tall);
    return i >= 0 && j >= 0 && i < this.rows.length && j < this.values[0].length ? [i, j] : null;
  }

  onPointer(event) {
    const at = this.cellAt(event);
    if (!at) return hideTip();
    const [i, j] = at, value = this.values[i][j];
    change({ hover: this.mark.pair(i, j) });
    const where = this.columns ? `${this.rows[i]} \u2192 ${this.columns[j]}` : `${this.rows[i]}, feature ${j}`;
    showTip(event.clientX, event.clientY, make("p", {}, where), make("p", { class: "number" }, make("strong", {}, value === null ? "hidden" : value.toPrecision(6).replace("-", "\u2212"))));
  }
}

/** Numbers of the chosen pair as bars. of(pair): the numbers. chosen(pair): which one stands out. */
class Bars {
  constructor(id, caption, of, chosen) {
    Object.assign(this, { caption, of, chosen });
    this.canvas = make("canvas", { role: "img", "data-matrix": id });
    this.figure = make("figure", {}, make("figcaption", {}, caption), this.canvas);
  }

  draw(room, pair) {
    const numbers = this.of(pair), chosen = this.chosen(pair);
    const signed = numbers.some((x) => x < 0);
    const most = Math.max(...numbers.map(Math.abs), 1e-9);
    const step = Math.min(room / numbers.length, 26);
    const [width, height, base] = [step * numbers.length, signed ? 92 : 62, signed ? 46 : 54];
    this.canvas.style.width = `${width}px`;
    const context = sized(this.canvas, width, height);
    context.clearRect(0, 0, width, height);
    const pen = new CanvasPen(context);
    numbers.forEach((x, n) => {
      const size = (Math.abs(x) / most) * (base - 4);
      const colour = chosen === null ? css(signedColour(x < 0 ? -1 : 1)) : variable(n === chosen ? "--accent" : "--soft");
      pen.rect(n * step, x < 0 ? base : base - size, Math.max(step - 1, 0.8), size, colour);
    });
    pen.line([[0, base], [width, base]], variable("--line"));
    this.canvas.setAttribute("aria-label", `${this.caption}: ${numbers.length} numbers, the largest ${shortNumber(most)}`);
  }
}

function largestOf(...matrices) {
  let most = 0;
  for (const rows of matrices) for (const row of rows) for (const x of row) if (Math.abs(x) > most && Number.isFinite(x)) most = Math.abs(x);
  return most || 1;
}

/** The size that all but a few numbers in a thousand stay below, so that those do not hide the rest. */
function usualSize(rows) {
  const sizes = rows.flatMap((row) => Array.from(row, Math.abs)).filter(Number.isFinite).sort((a, b) => a - b);
  return sizes[Math.floor(0.997 * (sizes.length - 1))] || 1;
}
