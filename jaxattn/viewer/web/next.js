/* The next tokens of a language model, after any position, at one of some temperatures. */

/** The probabilities of the top tokens and of all others together; exact at every offered temperature. */
function nextChances(logits, rest, temperature) {
  const scaled = logits.map((x) => x / temperature);
  const peak = Math.max(...scaled, rest);
  const total = scaled.reduce((sum, x) => sum + Math.exp(x - peak), Math.exp(rest - peak));
  return { top: scaled.map((x) => Math.exp(x - peak) / total), rest: Math.exp(rest - peak) / total, lse: peak + Math.log(total) };
}

class Next {
  constructor(place) {
    this.place = place;
    listen(["at", "temperature", "side", "query"], () => this.show());
  }

  async show() {
    const reading = current();
    byId("next").hidden = !reading.next;
    if (!reading.next) return;
    const { temperatures, words, vocabulary, came, rank } = reading.next;
    const [tokens, logits, rest, cameLogits] = await Promise.all(["tokens", "logits", "rest", "came"].map((name) => reading.array(`next/${name}`)));
    const at = Math.min(state.at ?? reading.t - 1, reading.t - 1);
    const nearest = temperatures.reduce((best, x, i) => (Math.abs(x - (state.temperature ?? 1)) < Math.abs(temperatures[best] - (state.temperature ?? 1)) ? i : best), 0);
    const many = tokens.length / reading.t;
    const top = [...logits.subarray(at * many, (at + 1) * many)];
    const chances = nextChances(top, rest[at * temperatures.length + nearest], temperatures[nearest]);
    this.controls(reading, at, nearest);
    byId("next-lead").textContent = `The last layer ends in a score for each of ${count(vocabulary)} tokens; a softmax makes probabilities of them. A low temperature sharpens them, a high one evens them out.`;
    const rows = chances.top.map((weight, i) => ({ word: words[tokens[at * many + i]], weight, number: `${(100 * weight).toFixed(2)} %` }));
    if (vocabulary > many) rows.push({ word: `${count(vocabulary - many)} others`, weight: chances.rest, number: `${(100 * chances.rest).toFixed(2)} %`, rest: true });
    const lines = [rankedList(rows, Math.max(...rows.map(({ weight }) => weight)))];
    if (came[at]) {
      const chance = Math.exp(cameLogits[at] / temperatures[nearest] - chances.lse);
      lines.push(make("p", { class: "soft" }, "What did come next: ", make("strong", { dir: "auto" }, came[at]), `, with ${(100 * chance).toFixed(2)} %, number ${count(rank[at])} of all.`));
    }
    this.place.replaceChildren(...lines);
  }

  controls(reading, at, nearest) {
    const place = byId("next-controls");
    const { temperatures } = reading.next;
    if (!place.childElementCount) {
      const position = make("input", { type: "range", id: "next-at", min: 0, step: 1, oninput: (event) => change({ at: Number(event.target.value) }) });
      const temperature = make("input", { type: "range", id: "next-temperature", min: 0, step: 1, oninput: (event) => change({ temperature: current().next.temperatures[Number(event.target.value)] }) });
      place.append(
        make("label", {}, "After ", position, make("output", { id: "next-at-out" })),
        make("label", {}, "Temperature ", temperature, make("output", { id: "next-temperature-out" })));
    }
    byId("next-at").max = reading.t - 1;
    byId("next-at").value = at;
    byId("next-at-out").textContent = `\u201c${cut(reading.tokens[at], 18)}\u201d (${count(at)})`;
    byId("next-temperature").max = temperatures.length - 1;
    byId("next-temperature").value = nearest;
    byId("next-temperature").setAttribute("aria-valuetext", String(temperatures[nearest]));
    byId("next-temperature-out").textContent = String(temperatures[nearest]);
  }
}
