/* The grid: every head of a reading, by layer or in the order of a statistic. */

const ORDERS = {
  layer: "layer by layer",
  entropy: "entropy, sharpest first",
  sink: "weight on the first token",
  previous: "weight on the previous token",
  induction: "induction",
  itself: "weight on the token itself",
};

/** The heads as [layer, head], in the chosen order; those without the statistic last. */
function headsInOrder(reading, order) {
  const heads = [];
  for (let layer = 0; layer < reading.layers; layer++) {
    for (let head = 0; head < reading.heads; head++) heads.push([layer, head]);
  }
  if (order === "layer") return heads;
  const sign = order === "entropy" ? 1 : -1;
  const value = ([layer, head]) => {
    const x = reading.statistic(order, layer, head);
    return x === null ? Infinity : sign * x;
  };
  return heads.sort((a, b) => value(a) - value(b) || 0);
}

class Grid {
  constructor(reading, place) {
    this.reading = reading;
    this.place = place;
    this.tiles = new Map();
    place.addEventListener("keydown", (event) => this.onKey(event));
    place.addEventListener("pointerleave", hideTip);
    listen(["order"], () => this.arrange());
    listen(["scale", "theme"], () => this.paint());
    listen(["layer", "head"], () => this.mark());
    this.arrange();
  }

  get columns() {
    return state.order === "layer" ? this.reading.heads : Math.min(12, this.reading.layers * this.reading.heads);
  }

  tile(layer, head) {
    const key = `${layer}.${head}`;
    if (!this.tiles.has(key)) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const button = make("button", {
        type: "button",
        class: this.reading.rows <= 40 ? "tile coarse" : "tile",
        "data-head": key,
        onclick: () => change({ layer, head }),
        onpointerenter: (event) => this.tip(event.clientX, event.clientY, layer, head),
      }, canvas);
      this.tiles.set(key, button);
    }
    return this.tiles.get(key);
  }

  /** Puts the tiles in order, with the numbers of layers and heads at the edges. */
  arrange() {
    const { reading, place } = this;
    const heads = headsInOrder(reading, state.order);
    const sorted = state.order !== "layer";
    const { columns } = this;
    this.order = heads;
    place.className = sorted ? "grid sorted" : "grid";
    place.style.gridTemplateColumns = `${sorted ? "" : "max-content "}repeat(${columns}, minmax(0, 1fr))`;
    place.style.maxWidth = `${30 + columns * 92}px`;
    const children = [];
    if (!sorted) {
      const every = Math.ceil(columns / 16);
      children.push(make("span", { class: "corner", "aria-hidden": "true" }, "layer"));
      for (let head = 0; head < columns; head++) {
        const text = head % every ? "" : head === 0 ? "head 0" : String(head);
        children.push(make("span", { class: "edge", "aria-hidden": "true" }, columns > 8 && head === 0 ? "0" : text));
      }
    }
    for (const [layer, head] of heads) {
      if (!sorted && head === 0) children.push(make("span", { class: "edge row", "aria-hidden": "true" }, String(layer)));
      const tile = this.tile(layer, head);
      tile.querySelector(".under")?.remove();
      if (sorted) tile.append(make("span", { class: "under" }, `${layer}.${head}`));
      tile.setAttribute("aria-label", this.label(layer, head));
      children.push(tile);
    }
    place.replaceChildren(...children);
    this.paint();
    this.mark();
  }

  label(layer, head) {
    const names = this.reading.names[layer][head].join(", ");
    const value = state.order === "layer" ? "" : `, ${shortNumber(this.reading.statistic(state.order, layer, head))}`;
    return `${headName(layer, head)}${value}${names ? `, ${names}` : ""}`;
  }

  paint() {
    const table = coloursOfCodes(state.scale, mostWeight());
    for (const [layer, head] of this.order) {
      pixelsOfHead(this.reading, layer, head, table, this.tile(layer, head).firstChild);
    }
  }

  mark() {
    for (const [key, tile] of this.tiles) {
      const chosen = key === `${state.layer}.${state.head}`;
      tile.setAttribute("aria-current", chosen);
      tile.tabIndex = chosen ? 0 : -1;
    }
  }

  tip(x, y, layer, head) {
    const names = this.reading.names[layer][head];
    const rows = STATISTICS.filter(([name]) => this.reading.statistic(name, layer, head) !== null)
      .map(([name, title]) => make("tr", {}, make("td", {}, title), make("td", { class: "number" }, shortNumber(this.reading.statistic(name, layer, head)))));
    showTip(x, y, make("p", {}, make("strong", {}, headName(layer, head))), ...(names.length ? [make("p", {}, names.join(", "))] : []), make("table", {}, ...rows));
  }

  onKey(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const at = this.order.findIndex(([layer, head]) => layer === state.layer && head === state.head);
    let to = event.key in steps ? at + steps[event.key] : event.key === "Home" ? 0 : event.key === "End" ? this.order.length - 1 : null;
    if (to === null || !this.order[to]) return;
    event.preventDefault();
    const [layer, head] = this.order[to];
    change({ layer, head });
    this.tile(layer, head).focus();
  }
}

/** The whole grid as one picture, for saving. */
function layoutOfGrid(reading) {
  const sorted = state.order !== "layer";
  const heads = headsInOrder(reading, state.order);
  const columns = sorted ? Math.min(12, heads.length) : reading.heads;
  const rows = Math.ceil(heads.length / columns);
  const tile = Math.max(48, Math.min(140, Math.floor(1100 / columns)));
  const [left, top, under] = [sorted ? 8 : 44, sorted ? 34 : 54, sorted ? 16 : 0];
  const height = top + rows * (tile + under + 2) + 56;
  return { heads, sorted, columns, tile, left, top, under, width: Math.max(left + columns * (tile + 2) + 10, 400), height };
}

function paintGrid(pen, reading, layout) {
  const { heads, sorted, columns, tile, left, top, under, width, height } = layout;
  const [ink, soft, table] = [variable("--ink"), variable("--soft"), coloursOfCodes(state.scale, mostWeight())];
  pen.rect(0, 0, width, height, variable("--paper"));
  pen.text(left, 16, cut(`${reading.title ? `${reading.title}: ` : ""}every head, ${ORDERS[state.order]}`, 90), { size: 13, colour: ink, bold: true });
  heads.forEach(([layer, head], i) => {
    const x = left + (i % columns) * (tile + 2), y = top + Math.floor(i / columns) * (tile + under + 2);
    pen.image(pixelsOfHead(reading, layer, head, table), x, y, tile, tile, reading.columns > tile);
    if (sorted) pen.text(x + tile / 2, y + tile + 9, `${layer}.${head}`, { size: 10, colour: soft, align: "middle" });
    else if (head === 0) pen.text(left - 8, y + tile / 2, String(layer), { colour: soft, align: "end" });
    if (!sorted && layer === 0) pen.text(x + tile / 2, top - 9, String(head), { colour: soft, align: "middle" });
  });
  if (!sorted) {
    pen.text(left, top - 24, "head", { colour: soft });
    pen.text(10, top + (Math.ceil(heads.length / columns) * (tile + 2)) / 2, "layer", { colour: soft, align: "middle", angle: -90 });
  }
  paintLegendAt(pen, left, height - 42);
}

/** The legend somewhere in a larger picture. */
function paintLegendAt(pen, x, y) {
  const moved = Object.create(pen);
  moved.rect = (a, b, ...rest) => pen.rect(a + x, b + y, ...rest);
  moved.text = (a, b, ...rest) => pen.text(a + x, b + y, ...rest);
  paintLegend(moved, 330, { most: mostWeight(), scale: state.scale });
}
