/* The arithmetic of one head, from queries and keys to what it puts out, in double precision. */

const slices = (flat, start, many, width) => Array.from({ length: many }, (_, i) => flat.subarray((start + i) * width, (start + i + 1) * width));
const dotProduct = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** softmax of a row, in which null is hidden; sink is a logit of the denominator alone, or null. */
function softmax(row, sink = null) {
  const seen = row.filter((x) => x !== null);
  if (!seen.length) return { weights: row.map((x) => (x === null ? null : 0)), peak: 0, total: 0 };
  const peak = Math.max(...seen, sink ?? -Infinity);
  const total = seen.reduce((sum, x) => sum + Math.exp(x - peak), sink === null ? 0 : Math.exp(sink - peak));
  return { weights: row.map((x) => (x === null ? null : Math.exp(x - peak) / total)), peak, total };
}

/** Each output: the values, weighted; null is hidden and adds nothing. */
function mix(weights, v) {
  const out = new Float64Array(v[0].length);
  weights.forEach((weight, j) => { if (weight) v[j].forEach((x, c) => { out[c] += weight * x; }); });
  return out;
}

/**
 * Every intermediate of a head: matrices as lists of rows, null for what is hidden.
 *
 * queries, keys: which tokens the rows and columns are. partial: whether they are one query and its
 * top keys alone. query: in that case, which of the opened ones.
 */
async function headSteps(reading, layer, head, query) {
  const { steps } = reading;
  const read = (name) => (steps.has.includes(name) ? reading.array(`steps/${name}/${layer}`) : null);
  return steps.kind === "all" ? allSteps(reading, layer, head, read) : someSteps(reading, layer, head, read, query);
}

async function allSteps(reading, layer, head, read) {
  const { t, s, heads, steps } = reading;
  const [q, k, v, x, logits] = await Promise.all(["q", "k", "v", "x", "logits"].map(read));
  const ofHead = (flat, many) => {
    const width = flat.length / heads / many;
    return slices(flat, head * many, many, width);
  };
  const [queries, keys] = [ofHead(q, t), ofHead(k, s)];
  const values = v ? ofHead(v, s) : null;
  const open = (i, j) => reading.pairsIn(layer, head, i, j) > 0;
  const raw = queries.map((a) => keys.map((b) => dotProduct(a, b)));
  const scaled = raw.map((row) => row.map((z) => z * steps.scale[layer]));
  const changed = logits ? ofHead(logits, t).map((row, i) => Array.from(row, (z, j) => (open(i, j) ? z : null))) : null;
  const masked = (changed ?? scaled).map((row, i) => row.map((z, j) => (open(i, j) ? z : null)));
  const sink = steps.sinks ? steps.sinks[layer][head] : null;
  const soft = masked.map((row) => softmax(row, sink));
  const weights = soft.map((each) => each.weights);
  return {
    partial: false, queries: [...Array(t).keys()], keys: [...Array(s).keys()],
    x: x ? slices(x, 0, t, x.length / t) : null, q: queries, k: keys, v: values,
    raw, scaled, changed, masked, weights, sink, soft,
    hides: masked.some((row) => row.includes(null)),
    out: values ? weights.map((row) => mix(row, values)) : null, scale: steps.scale[layer],
  };
}

async function someSteps(reading, layer, head, read, query) {
  const { steps } = reading;
  const names = ["keys", "weights", "lse", "q", "k", "v", "out"];
  const [keys, weights, lse, q, k, v, out] = await Promise.all(names.map(read));
  const many = steps.queries.length, at = Math.max(steps.queries.indexOf(query), 0);
  const place = head * many + at;
  const top = keys.length / (reading.heads * many);
  const real = [...keys.subarray(place * top, (place + 1) * top)].map((key, i) => [key, i]).filter(([key]) => key >= 0);
  const width = steps.width;
  const rows = (flat) => {
    const size = flat.length / (reading.heads * many * top);
    const all = slices(flat, place * top, top, size);
    return real.map(([, i]) => all[i]);
  };
  const one = q.subarray(place * width, (place + 1) * width);
  const chosen = rows(k), values = v ? rows(v) : null;
  const raw = [chosen.map((b) => dotProduct(one, b))];
  const scaled = [raw[0].map((z) => z * steps.scale[layer])];
  const exact = [real.map(([, i]) => weights[place * top + i])];
  const changed = reading.changes.length ? [exact[0].map((w) => lse[place] + Math.log(w))] : null;
  const size = out ? out.length / (reading.heads * many) : 0;
  return {
    partial: true, queries: [steps.queries[at]], keys: real.map(([key]) => key), x: null, q: [one], k: chosen, v: values,
    raw, scaled, changed, masked: changed ?? scaled, weights: exact, lse: lse[place], sink: null, hides: false,
    soft: [{ weights: exact[0], lse: lse[place] }],
    out: out ? [out.subarray(place * size, (place + 1) * size)] : null, scale: steps.scale[layer],
  };
}
