/* A reading, as `contents` in Python wrote it: tokens, maps, statistics, top keys. */

class Reading {
  constructor(side) {
    Object.assign(this, description.readings[side]);
    this.side = side;
    this.same = this.keys === null;
    this.keys ??= this.tokens;
    this.t = this.tokens.length;
    this.s = this.keys.length;
    this.down = Math.ceil(this.t / this.rows);
    this.across = Math.ceil(this.s / this.columns);
    this.pooled = this.down > 1 || this.across > 1;
    this.title = this.name || (readings.length ? `Input ${side + 1}` : "");
    this.perLayer = [];
    this.queryNames = numbered(this.tokens);
    this.keyNames = numbered(this.keys);
  }

  array(name) {
    return unpack(`${this.side}/${name}`);
  }

  /** All that the grid needs. */
  async load() {
    const layers = Array.from({ length: this.layers }, (_, i) => this.array(`map/${i}`));
    this.maps = await Promise.all(layers);
    const names = ["pairs", "sees", "tops/queries"];
    [this.pairCounts, this.seen, this.topQueries] = await Promise.all(names.map((name) => this.array(name)));
    this.most = this.largestWeight();
  }

  /** What a head needs beside its map. */
  async loadLayer(layer) {
    const names = ["entropy", "received", "tops/keys", "tops/weights"];
    const arrays = await Promise.all(names.map((name) => this.array(`${name}/${layer}`)));
    const [entropy, received, topKeys, topWeights] = arrays;
    this.perLayer[layer] = { entropy, received, topKeys, topWeights };
  }

  index(layer, head) {
    return layer * this.heads + head;
  }

  /** The bytes of a head's map. */
  codes(layer, head) {
    const size = this.rows * this.columns;
    return this.maps[layer].subarray(head * size, (head + 1) * size);
  }

  /** The weight in a cell; null where it is hidden. */
  weight(layer, head, row, column) {
    const code = this.maps[layer][(head * this.rows + row) * this.columns + column];
    return code === HIDDEN ? null : WEIGHT_OF_CODE[code];
  }

  /** How many pairs of a cell a head may see. */
  pairsIn(layer, head, row, column) {
    return this.pairCounts[(this.pairs[this.index(layer, head)] * this.rows + row) * this.columns + column];
  }

  /** How many keys a query sees. */
  keysSeen(layer, head, query) {
    return this.seen[this.sees[this.index(layer, head)] * this.t + query];
  }

  /** Whether a cell is hidden from every head, as above the diagonal of a causal model. */
  get isCausal() {
    if (!this.same || this.t < 2) return false;
    return [0, Math.floor(this.t / 2), this.t - 1].every((i) => this.keysSeen(0, 0, i) <= i + 1);
  }

  rowOf(query) { return Math.floor(query / this.down); }
  columnOf(key) { return Math.floor(key / this.across); }
  queriesOf(row) { return [row * this.down, Math.min((row + 1) * this.down, this.t) - 1]; }
  keysOf(column) { return [column * this.across, Math.min((column + 1) * this.across, this.s) - 1]; }

  entropyOf(layer, head, query) { return this.perLayer[layer].entropy[head * this.t + query]; }
  receivedOf(layer, head, key) { return this.perLayer[layer].received[head * this.s + key]; }

  /** The keys with the largest weights of the query that stands for this one: exact numbers. */
  topsOf(layer, head, query) {
    const { topKeys, topWeights } = this.perLayer[layer];
    const row = this.rowOf(query);
    const many = topKeys.length / (this.heads * this.topQueries.length);
    const start = (head * this.topQueries.length + row) * many;
    const list = [];
    for (let i = start; i < start + many; i++) {
      if (topKeys[i] >= 0) list.push({ key: topKeys[i], weight: topWeights[i] });
    }
    return { query: this.topQueries[row], list };
  }

  /** The exact weight of a pair, if it is among the top keys of its query; else null. */
  exactWeight(layer, head, query, key) {
    const tops = this.topsOf(layer, head, query);
    if (tops.query !== query) return null;
    return tops.list.find((top) => top.key === key)?.weight ?? null;
  }

  /** The exact weight of a pair where it is known, else that of its cell; of keys pooled, their mean. */
  weightOfPair(layer, head, query, key) {
    const tops = this.topsOf(layer, head, query);
    const exact = tops.query === query;
    const top = exact && tops.list.find((each) => each.key === key);
    if (top) return top.weight;
    const column = this.columnOf(key), [from, to] = this.keysOf(column);
    const cell = this.weight(layer, head, this.rowOf(query), column);
    if (cell === null) return null;
    const weight = this.peak ? cell : cell / (to - from + 1);
    return exact && tops.list.length ? Math.min(weight, tops.list.at(-1).weight) : weight;
  }

  statistic(name, layer, head) { return this.statistics[name][layer][head]; }

  /** The largest weight of any map, but for rows that may see one key alone, where it is always 1. */
  largestWeight() {
    let largest = LOWEST;
    for (let layer = 0; layer < this.layers; layer++) {
      for (let head = 0; head < this.heads; head++) {
        const codes = this.codes(layer, head);
        for (let row = 0; row < this.rows; row++) {
          if (this.keysSeen(layer, head, this.queriesOf(row)[1]) < 2) continue;
          const end = (row + 1) * this.columns;
          for (let i = row * this.columns; i < end; i++) if (codes[i] > largest) largest = codes[i];
        }
      }
    }
    return largest === LOWEST ? 1 : WEIGHT_OF_CODE[largest];
  }
}

/** Tokens as labels: of those that come more than once, all but the first have a number. */
function numbered(tokens) {
  if (tokens.length > 64) return tokens;
  const met = new Map();
  return tokens.map((token) => {
    met.set(token, (met.get(token) ?? 0) + 1);
    const number = met.get(token);
    return number === 1 ? token : cut(token) + String(number).replace(/\d/g, (digit) => String.fromCharCode(0x2080 + Number(digit)));
  });
}

const readings = [];

/** The reading that the walk, the next tokens and the table are of. */
const current = () => readings[state.side];

/** One colour scale for all heads of all readings, so that they can be compared. */
const mostWeight = () => Math.max(...readings.map((reading) => reading.most));

const headName = (layer, head) => `Layer ${layer} \u00b7 head ${head}`;

/** Tokens from one to another, as they read. */
function passage(tokens, [from, to]) {
  if (from === to) return `${cut(tokens[from], 24)} (${from})`;
  return `${cut(tokens[from])} \u2026 ${cut(tokens[to])} (${count(from)}\u2013${count(to)})`;
}
