/* The walk through a head: each step with its name, formula, shape, a plain sentence and its numbers. */

const maths = (html) => {
  const line = make("p", { class: "formula" });
  const span = make("span", { class: "maths" });
  span.innerHTML = html; // of this file, never of the input
  line.append(span);
  return line;
};

class Walk {
  constructor(place) {
    this.place = place;
    this.turn = 0;
    listen(["layer", "head", "side", "theme", "scale", "query"], (now) => this.build(now));
    listen(["query", "key"], () => this.follow());
    listen(["hover"], whenSeen(place, () => this.follow()));
    new ResizeObserver(() => this.resize()).observe(place);
  }

  async build(now = new Set()) {
    const reading = current();
    const { steps } = reading;
    byId("walk-title").textContent = `Inside ${headName(state.layer, state.head).toLowerCase()}`;
    if (!steps || steps.kind === "too large") return this.explain(reading, steps);
    if (now.size === 1 && now.has("query") && steps.kind === "all") return;
    const turn = ++this.turn;
    const walk = await headSteps(reading, state.layer, state.head, this.openedQuery(steps));
    if (turn !== this.turn) return;
    Object.assign(this, { reading, walk });
    this.lead(reading, walk);
    this.sums = [];
    this.matrices = [];
    this.rows = [];
    this.place.replaceChildren(...this.parts(reading, walk));
    this.resize();
    this.follow();
  }

  /** Of the queries that can be opened, the chosen one or the one before it. */
  openedQuery(steps) {
    if (steps.kind === "all") return null;
    if (steps.queries.includes(state.query)) return state.query;
    return this.walk?.partial && steps.queries.includes(this.walk.queries[0]) ? this.walk.queries[0] : steps.queries[0];
  }

  explain(reading, steps) {
    byId("walk-controls").replaceChildren();
    byId("walk-lead").textContent = "";
    this.walk = null;
    const why = steps
      ? "The queries, keys and values of this model are too large for one page. Make one with fewer queries opened: opened=[\u2026]."
      : "This page was made from weights alone. Given the queries, keys and values too, it shows here how the head comes to its weights: the products, the scaling, the mask, the softmax and the mix.";
    this.place.replaceChildren(make("li", { class: "note" }, why));
  }

  lead(reading, walk) {
    byId("walk-lead").textContent = walk.partial
      ? `With ${count(reading.t)} tokens, one query is followed at a time, with the keys to which this head gives most weight. Point at a key to see its numbers.`
      : "These are the real numbers of this head, step by step. Point at any cell: the same query and key are marked in every step, and the sums beside are theirs.";
    const controls = byId("walk-controls");
    const choose = (label, indices, tokens, chosen, act) => {
      const select = make("select", { onchange: (event) => act(Number(event.target.value)) });
      options(select, Object.fromEntries(indices.map((i) => [i, `${cut(tokens[i], 20)} (${count(i)})`])), String(chosen));
      return make("label", {}, label, select);
    };
    const { query, key } = this.pair();
    controls.replaceChildren(
      choose("Query", walk.partial ? reading.steps.queries : walk.queries, reading.tokens, query, (i) => change({ query: i })),
      choose("Key", [...walk.keys].sort((a, b) => a - b), reading.keys, key, (i) => change({ key: i })));
  }

  /** The query and the key whose numbers are told: those looked at, if they are here. */
  pair() {
    const { walk } = this;
    const [hover, chosen] = [focusOf(), state];
    const query = [hover.query, chosen.query].find((i) => walk.queries.includes(i)) ?? walk.queries.at(-1);
    const row = walk.queries.indexOf(query);
    const best = walk.weights[row].reduce((best, w, j) => ((w ?? -1) > (walk.weights[row][best] ?? -1) ? j : best), 0);
    const key = [hover.key, chosen.key].find((j) => walk.keys.includes(j)) ?? walk.keys[best];
    return { query, key, i: row, j: walk.keys.indexOf(key) };
  }

  parts(reading, walk) {
    const queryNames = walk.queries.map((i) => reading.queryNames[i]);
    const keyNames = walk.keys.map((i) => reading.keyNames[i]);
    const left = Math.min(NAME_WIDTH, Math.max(...[...queryNames, ...keyNames].map((x) => textWidth(cut(x, 12), 11)))) + 8;
    const [n, m] = [walk.partial ? 1 : reading.t, walk.partial ? `${walk.keys.length} of ${count(reading.s)}` : reading.s];
    const d = walk.q[0].length, e = walk.v?.[0].length;
    const ofQueries = { pair: (i) => ({ query: walk.queries[i], key: this.pair().key }), at: () => [this.pair().i, null] };
    const ofKeys = { pair: (j) => ({ query: this.pair().query, key: walk.keys[j] }), at: () => [this.pair().j, null] };
    const ofPairs = { pair: (i, j) => ({ query: walk.queries[i], key: walk.keys[j] }), at: () => [this.pair().i, this.pair().j] };
    const rowsOf = (id, caption, values, rows, mark, group) => ({ id, caption, values, rows, mark, group, left });
    const pairsOf = (id, caption, values, weights = false) => ({ id, caption, values, rows: queryNames, columns: keyNames, weights, mark: ofPairs, left });
    const token = (i, tokens) => `\u201c${cut(tokens[i], 16)}\u201d`;
    const said = (name, value) => [name, make("span", { class: "number result" }, value)];
    const parts = [];
    const both = largestOf(walk.q, walk.k);

    if (walk.x) parts.push(this.step("Tokens as numbers", "X", `${n} tokens \u00d7 ${walk.x[0].length} numbers`,
      "Every token comes in as a row of numbers, which tell what the model knows of it so far.",
      [rowsOf("x", "X", walk.x, queryNames, ofQueries, usualSize(walk.x))]));
    parts.push(this.step("Query, key and value", "Q = X W<sub>Q</sub> &emsp; K = X W<sub>K</sub>" + (walk.v ? " &emsp; V = X W<sub>V</sub>" : ""),
      `Q ${n} \u00d7 ${d}, K ${m} \u00d7 ${d}${e ? `, V ${m} \u00d7 ${e}` : ""}`,
      "Three learned matrices make three rows of each token: what it looks for, what it can be found by, and what it hands over.",
      [rowsOf("q", "Q, queries", walk.q, queryNames, ofQueries, both), rowsOf("k", "K, keys", walk.k, keyNames, ofKeys, both),
        ...(walk.v ? [rowsOf("v", "V, values", walk.v, keyNames, ofKeys)] : [])],
      null, reading.notes.length ? `Also in this model: ${reading.notes.join("; ")}.` : null));
    parts.push(this.step("Scores", "S = Q K<sup>T</sup>", `${n} \u00d7 ${m}`,
      "Each query is compared with each key: their numbers are multiplied one by one and added up. Where both are large and of one sign, the score is high.",
      [pairsOf("raw", "S", walk.raw), this.bars("products", "q \u00b7 k, one product for each feature", ({ i, j }) => Array.from(walk.q[i], (x, c) => x * walk.k[j][c]), () => null)],
      ({ query, key, i, j }) => [`${token(query, reading.tokens)} \u00b7 ${token(key, reading.keys)} = `, ...largestProducts(walk.q[i], walk.k[j]), " = ", ...said("", fixed(walk.raw[i][j]))]));
    const root = Math.abs(walk.scale - d ** -0.5) < 1e-6;
    parts.push(this.step("Scaled", root ? `S / \u221a<span>${d}</span>` : `S \u00b7 <span>${shortNumber(walk.scale)}</span>`, `${n} \u00d7 ${m}`,
      "A sum of many products is large by itself. Divided, it stays in a range in which the next step can still tell keys apart.",
      [pairsOf("scaled", "scaled", walk.scaled)],
      ({ i, j }) => [`${fixed(walk.raw[i][j])} \u00d7 ${shortNumber(walk.scale)} = `, ...said("", fixed(walk.scaled[i][j]))]));
    if (walk.changed) parts.push(this.step("Changed", "f(S)", `${n} \u00d7 ${m}`,
      `This model changes the scores before it weighs them: ${reading.changes.join("; ")}.`,
      [pairsOf("changed", "changed", walk.changed)],
      ({ i, j }) => [`${fixed(walk.scaled[i][j])} \u2192 `, ...said("", walk.changed[i][j] === null ? "hidden" : fixed(walk.changed[i][j]))]));
    if (walk.hides) parts.push(this.step("Masked", "\u2212\u221e where hidden", `${n} \u00d7 ${m}`,
      reading.isCausal ? "A token may not look at those that come after it, which it will have to predict. Hidden pairs are grey: they are not zero, they are not there."
        : "Some pairs may not see each other, such as padding. Hidden pairs are grey: they are not zero, they are not there.",
      [pairsOf("masked", "masked", walk.masked)],
      ({ i, j }) => [walk.masked[i][j] === null ? `${token(walk.queries[i], reading.tokens)} may not see ${token(walk.keys[j], reading.keys)}: ` : "This pair is open: ", ...said("", walk.masked[i][j] === null ? "\u2212\u221e" : fixed(walk.masked[i][j]))]));
    parts.push(this.step("Weights", "A = softmax(S), &ensp; A<sub>ij</sub> = exp(S<sub>ij</sub>) / \u03a3<sub>j</sub> exp(S<sub>ij</sub>)", `${n} \u00d7 ${m}`,
      `The exponential makes every score positive and stretches the differences; divided by their sum, the weights of each query add up to 1${walk.sink === null ? "" : " together with a sink, which takes its share and hands over nothing"}. This is the map above.`,
      [pairsOf("weights", "A", walk.weights, true), this.bars("row", "the weights of this query", ({ i }) => walk.weights[i].map((x) => x ?? 0), ({ j }) => j)],
      ({ i, j }) => softmaxWords(walk, i, j, said)));
    if (walk.out) parts.push(this.step("Output", "O = A V", `${n} \u00d7 ${e}`,
      "Each token takes from every value as much as its weights say. This mix is all that the head hands on. The outputs of all heads, side by side, go through one more matrix and are added to X.",
      [rowsOf("out", "O", walk.out, queryNames, ofQueries)],
      ({ i }) => mixWords(walk, i, reading, said)));
    return parts;
  }

  step(title, formula, shape, plain, pictures, words = null, note = null) {
    const sum = make("p", { class: "sum" });
    if (words) this.sums.push(() => sum.replaceChildren(...words(this.pair())));
    const figures = pictures.map((picture) => {
      if (picture instanceof Bars) return picture.figure;
      const matrix = new Matrix(picture);
      this.matrices.push(matrix);
      return matrix.figure;
    });
    const text = make("div", {}, make("h3", {}, title), maths(formula), make("p", { class: "shape" }, shape), make("p", { class: "plain" }, plain),
      ...(note ? [make("p", { class: "sum" }, note)] : []), ...(words ? [sum] : []));
    return make("li", { class: "step" }, text, make("div", { class: "pictures" }, ...figures));
  }

  bars(...what) {
    const bars = new Bars(...what);
    this.rows.push(bars);
    return bars;
  }

  drawBars() {
    const pair = this.pair();
    for (const bars of this.rows) bars.draw(Math.min(this.room, 340), pair);
  }

  resize() {
    if (!this.walk) return;
    const pictures = this.place.querySelector(".pictures");
    this.room = pictures.clientWidth;
    if (!this.room) return;
    for (const matrix of this.matrices) matrix.draw(matrix.columns ? Math.min(this.room, 430) : this.room);
    this.drawBars();
  }

  follow() {
    if (!this.walk || !this.room) return;
    for (const matrix of this.matrices) matrix.drawMark();
    for (const write of this.sums) write();
    this.drawBars();
    const { query, key } = this.pair();
    const [first, second] = byId("walk-controls").querySelectorAll("select");
    if (first) [first.value, second.value] = [String(query), String(key)];
  }
}

/** The products that matter most, and what the others add up to. */
function largestProducts(q, k) {
  const terms = Array.from(q, (x, c) => [x, k[c], x * k[c]]).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
  const shown = terms.slice(0, 2);
  const rest = terms.slice(2).reduce((sum, [, , x]) => sum + x, 0);
  const bracket = (x) => (x < 0 ? `(${fixed(x, 2)})` : fixed(x, 2));
  const text = shown.map(([a, b]) => `${bracket(a)} \u00d7 ${bracket(b)}`).join(" + ");
  return [make("span", { class: "number" }, text), terms.length > 2 ? ` + ${terms.length - 2} more (${fixed(rest, 2)})` : ""];
}

function softmaxWords(walk, i, j, said) {
  const weight = walk.weights[i][j];
  if (weight === null) return ["Hidden: exp(\u2212\u221e) = 0, so the weight is ", ...said("", "0")];
  const logit = walk.masked[i][j];
  if (walk.partial) return [`exp(${fixed(logit)} \u2212 ${fixed(walk.lse)}) = `, ...said("", fixed(weight, 4)), `, where ${fixed(walk.lse)} is the logarithm of the sum over all keys.`];
  const { peak, total } = walk.soft[i];
  return [`exp(${fixed(logit)}) / \u03a3 = ${shortNumber(Math.exp(logit - peak))} / ${shortNumber(total)} = `, ...said("", fixed(weight, 4)),
    ` (both sides divided by exp(${fixed(peak)}), the largest of the row, so that nothing overflows).`];
}

function mixWords(walk, i, reading, said) {
  const terms = walk.weights[i].map((weight, j) => [weight ?? 0, j]).sort((a, b) => b[0] - a[0]);
  const shown = terms.slice(0, 3).filter(([weight]) => weight > 0);
  const rest = 1 - shown.reduce((sum, [weight]) => sum + weight, 0);
  const text = shown.map(([weight, j]) => `${fixed(weight, 3)} \u00d7 \u201c${cut(reading.keys[walk.keys[j]], 12)}\u201d`).join(" + ");
  return [`O of \u201c${cut(reading.tokens[walk.queries[i]], 16)}\u201d = ${text}`, rest > 0.0005 ? ` + ${fixed(rest, 3)} \u00d7 others` : "", "; its first number is ", ...said("", fixed(walk.out[i][0]))];
}
