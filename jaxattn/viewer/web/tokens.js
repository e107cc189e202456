/* The strips of tokens: where a query looks, and who looks at a key; and both as ranked lists. */

const STRIP = 128, STRIP_OF_MANY = 64; // tokens that are shown at a time

class Strip {
  /** kind: "query" or "key". */
  constructor(reading, kind, place) {
    this.reading = reading;
    this.kind = kind;
    this.tokens = kind === "query" ? reading.tokens : reading.keys;
    this.place = place;
    this.from = -1;
    place.addEventListener("pointerover", (event) => this.onOver(event));
    place.addEventListener("pointerleave", () => { hideTip(); change({ hover: null }); });
    place.addEventListener("click", (event) => this.onClick(event));
    place.addEventListener("keydown", (event) => this.onKey(event));
    place.addEventListener("focusin", (event) => this.onOver(event));
    place.addEventListener("focusout", () => { hideTip(); change({ hover: null }); });
    listen(["query", "key", "layer", "head", "scale", "theme"], () => this.show());
    listen(["hover"], whenSeen(place, () => this.show()));
  }

  index(event) {
    const at = event.target.closest?.(".token")?.dataset.at;
    return at === undefined ? null : Number(at);
  }

  onOver(event) {
    const at = this.index(event);
    if (at === null) return;
    change({ hover: this.kind === "query" ? { query: at, key: null } : { query: null, key: at } });
  }

  onClick(event) {
    const at = this.index(event);
    if (at !== null) change({ [this.kind]: state[this.kind] === at ? null : at });
  }

  onKey(event) {
    const at = this.index(event);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.tokens.length - 1 }[event.key];
    if (at === null || to === undefined || to < 0 || to >= this.tokens.length) return;
    event.preventDefault();
    this.build(to);
    this.buttons[to - this.from].focus();
  }

  /** Makes the tokens around one, if it is not among those that are there. */
  build(around) {
    const many = this.tokens.length, most = many <= STRIP ? STRIP : STRIP_OF_MANY;
    if (this.from >= 0 && around >= this.from && around < this.from + this.buttons.length) return;
    this.from = many <= most ? 0 : Math.min(Math.max(around - most / 2, 0), many - most);
    const end = Math.min(this.from + most, many);
    this.buttons = [];
    for (let i = this.from; i < end; i++) {
      this.buttons.push(make("button", { type: "button", class: "token", dir: "auto", "data-at": i, tabindex: "-1" }, cut(this.tokens[i], 24)));
    }
    const more = (n, text) => (n > 0 ? [make("span", { class: "strip-more" }, `${count(n)} ${text}`)] : []);
    this.place.replaceChildren(...more(this.from, "before"), ...this.buttons, ...more(many - end, "after"));
  }

  /** The weight of each token under the one that is looked at: null where hidden, undefined for none. */
  weightOf(i) {
    const { reading, kind } = this;
    const focus = focusOf();
    const [query, key] = kind === "key" ? [focus.query, i] : [i, focus.key];
    if (query === null || key === null || query >= reading.t || key >= reading.s) return undefined;
    return reading.weightOfPair(state.layer, state.head, query, key);
  }

  /** The token to show others around, where none of this strip is looked at. */
  middle() {
    const { reading, kind } = this;
    const { query } = focusOf();
    if (kind === "query") return this.tokens.length - 1;
    if (query === null || query >= reading.t) return Math.max(this.from, 0);
    return reading.topsOf(state.layer, state.head, query).list[0]?.key ?? 0;
  }

  async show() {
    await this.reading.loadLayer(state.layer);
    const focus = focusOf()[this.kind];
    this.build(focus ?? state[this.kind] ?? this.middle());
    const most = mostWeight();
    const chosen = state[this.kind], open = chosen ?? this.from;
    this.buttons.forEach((button, n) => {
      const i = this.from + n, weight = this.weightOf(i);
      const colour = weight === undefined || weight === null ? null : colourOfWeight(weight, state.scale, most);
      const style = colour ? `background:${css(colour)};color:${inkOn(colour)}` : weight === null ? "opacity:0.75" : "";
      if (button.dataset.style !== style) button.setAttribute("style", button.dataset.style = style);
      button.setAttribute("aria-pressed", i === chosen);
      button.style.borderColor = i === focus ? "var(--accent)" : "";
      button.tabIndex = i === open || (n === 0 && (open < this.from || open >= this.from + this.buttons.length)) ? 0 : -1;
    });
  }
}

/** A ranked list of [word, weight, what clicking does]. */
function rankedList(rows, most) {
  return make("ol", { class: "ranked" }, ...rows.map(({ word, weight, number, act, rest }) => {
    const name = act
      ? make("button", { type: "button", class: "word", dir: "auto", onclick: act }, word)
      : make("span", { class: "word soft" }, word);
    const bar = make("span", { class: rest ? "bar rest" : "bar" });
    bar.style.width = `${Math.min(100, (100 * weight) / most)}%`;
    return make("li", {}, name, bar, make("span", { class: "number" }, number));
  }));
}

const namedToken = (tokens, i) => `${cut(tokens[i], 16)} (${count(i)})`;

class Lists {
  constructor(reading, looksAt, lookedAt) {
    Object.assign(this, { reading, looksAt, lookedAt });
    listen(["query", "key", "layer", "head"], () => this.show());
    listen(["hover"], whenSeen(looksAt, () => this.show()));
  }

  async show() {
    await this.reading.loadLayer(state.layer);
    const { reading } = this;
    const focus = focusOf();
    const query = focus.query ?? state.query ?? reading.t - 1;
    if (query < reading.t) this.showQuery(query);
    const key = focus.key ?? state.key ?? reading.topsOf(state.layer, state.head, Math.min(query, reading.t - 1)).list[0]?.key ?? 0;
    if (key < reading.s) this.showKey(key);
  }

  showQuery(query) {
    const { reading } = this;
    const tops = reading.topsOf(state.layer, state.head, query);
    const rows = tops.list.map(({ key, weight }) => ({
      word: namedToken(reading.keys, key), weight, number: exactNumber(weight), act: () => change({ key }),
    }));
    const rest = 1 - tops.list.reduce((sum, { weight }) => sum + weight, 0);
    const others = reading.keysSeen(state.layer, state.head, tops.query) - tops.list.length;
    if (others > 0) rows.push({ word: `${plural(others, "other")}`, weight: Math.max(rest, 0), number: fixed(Math.max(rest, 0), 4), rest: true });
    const stands = tops.query === query ? "" : ` It stands for the ${reading.down} queries of its row.`;
    const title = make("h3", {}, "Query ", make("span", { class: "number" }, namedToken(reading.tokens, tops.query)), " looks at");
    const blind = make("p", { class: "soft" }, "It may see no key.");
    const entropy = make("p", { class: "soft" }, `Entropy ${shortNumber(reading.entropyOf(state.layer, state.head, tops.query))} nats of at most ${shortNumber(fullEntropy(reading, state.layer, state.head, tops.query))}. Weights here are exact.${stands}`);
    this.looksAt.replaceChildren(title, entropy, rows.length ? rankedList(rows, 1) : blind);
  }

  showKey(key) {
    const { reading } = this;
    const column = reading.columnOf(key);
    const rows = Array.from({ length: reading.rows }, (_, row) => ({ row, weight: reading.weight(state.layer, state.head, row, column) }))
      .filter(({ weight }) => weight > 0)
      .sort((a, b) => b.weight - a.weight)
      .slice(0, 8)
      .map(({ row, weight }) => ({
        word: reading.down > 1 ? passage(reading.tokens, reading.queriesOf(row)) : namedToken(reading.tokens, row),
        weight, number: `\u2248 ${shortNumber(weight)}`, act: () => change({ query: reading.topQueries[row] }),
      }));
    const what = reading.across > 1 ? passage(reading.keys, reading.keysOf(column)) : namedToken(reading.keys, key);
    const title = make("h3", {}, "Key ", make("span", { class: "number" }, what), " is looked at by");
    const [from, to] = reading.keysOf(column);
    let mass = 0;
    for (let i = from; i <= to; i++) mass += reading.receivedOf(state.layer, state.head, i);
    const received = make("p", { class: "soft" }, `It receives ${shortNumber(mass)} in all, from ${plural(reading.t, "query")}. Weights here are quantised.`);
    this.lookedAt.replaceChildren(title, received, rankedList(rows, 1));
  }
}

function buildStrips(reading, place) {
  const named = (text) => make("p", { class: "strip-name" }, text);
  const group = (label) => make("div", { class: "strip", role: "group", "aria-label": label });
  const [queries, keys] = [group("Queries"), group("Keys")];
  const [looksAt, lookedAt] = [make("div"), make("div")];
  place.append(
    ...(readings.length > 1 ? [make("h3", { class: "panel-title" }, reading.title)] : []),
    named("Queries: the tokens that look, coloured by how much they look at the key"), queries,
    named("Keys: the tokens that are looked at, coloured by how much the query looks at them"), keys,
    make("div", { class: "pair" }, looksAt, lookedAt));
  const strips = [new Strip(reading, "query", queries), new Strip(reading, "key", keys)];
  strips.forEach((strip) => strip.show());
  new Lists(reading, looksAt, lookedAt).show();
}
