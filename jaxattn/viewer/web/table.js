/* The table of what heads do: one row a head, sortable by every column. */

const STATISTICS = [
  ["entropy", "entropy", "How evenly the weights are spread, in nats: 0 if all is on one key"],
  ["sink", "first token", "Mean weight on the first token, the attention sink"],
  ["previous", "previous", "Mean weight on the token before"],
  ["itself", "self", "Mean weight on the token itself"],
  ["next", "next", "Mean weight on the token after"],
  ["induction", "induction", "Mean weight on what came after an earlier token that is the same"],
  ["distance", "distance", "Mean distance between query and key, in tokens"],
  ["largest", "largest logit", "The largest number that the softmax gets"],
];

class Table {
  constructor(place) {
    this.place = place;
    [this.by, this.down] = ["layer", false];
    listen(["side"], () => this.build());
    listen(["layer", "head"], () => this.mark());
    this.build();
  }

  get columns() {
    const reading = current();
    const known = ([name]) => reading.statistics[name].some((row) => row.some((x) => x !== null));
    return STATISTICS.filter(known).filter(([name]) => !(name === "next" && reading.isCausal));
  }

  value(name, [layer, head]) {
    if (name === "layer") return layer * current().heads + head;
    return current().statistic(name, layer, head);
  }

  /** The heads in the order of a column; those without a number last. */
  sorted() {
    const heads = headsInOrder(current(), "layer");
    const sign = this.down ? -1 : 1;
    const value = (head) => this.value(this.by, head);
    return heads.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x - y);
    });
  }

  build() {
    const reading = current();
    const head = (name, title, help) => {
      const direction = this.by === name ? (this.down ? "descending" : "ascending") : "none";
      const sort = () => {
        [this.by, this.down] = [name, this.by === name ? !this.down : name !== "layer"];
        this.build();
        this.place.querySelector(`[data-column="${name}"]`).focus();
      };
      return make("th", { scope: "col", "aria-sort": direction }, make("button", { type: "button", title: help, "data-column": name, onclick: sort }, title));
    };
    const { columns } = this;
    const rows = this.sorted().map(([layer, h]) => {
      const open = () => change({ layer, head: h });
      const names = reading.names[layer][h].map((name) => make("span", { class: "badge" }, name));
      return make("tr", { "data-head": `${layer}.${h}`, onclick: open },
        make("td", {}, make("button", { type: "button", class: "open", "aria-label": `Open ${headName(layer, h)}`, onclick: open }, `${layer}.${h}`)),
        ...columns.map(([name]) => make("td", {}, shortNumber(this.value(name, [layer, h])))),
        make("td", {}, ...names.flatMap((badge) => [badge, " "])));
    });
    const caption = make("caption", { class: "unseen" }, "Statistics of every head");
    const header = make("tr", {}, head("layer", "head", "Layer and head"), ...columns.map((column) => head(...column)), make("th", { scope: "col" }, make("span", { class: "unseen" }, "name")));
    this.place.replaceChildren(make("table", { class: "stats" }, caption, make("thead", {}, header), make("tbody", {}, ...rows)));
    this.lead(reading);
    this.mark();
  }

  lead(reading) {
    const known = reading.thresholds.filter(([field]) => reading.statistics[field].some((row) => row.some((x) => x !== null)));
    const rule = ([field, name, least]) => `${name} (${RULES[field]} \u2265 ${least})`;
    byId("roles-lead").textContent = `Each number is a mean over the queries that see more than one key. Names are given by a threshold: ${known.map(rule).join(", ")}. Most heads have none, and do several things at once.`;
  }

  mark() {
    for (const row of this.place.querySelectorAll("tbody tr")) {
      row.setAttribute("aria-current", row.dataset.head === `${state.layer}.${state.head}`);
    }
  }
}

/** What a threshold is of. */
const RULES = {
  previous: "previous", itself: "self", next: "next", induction: "induction", sink: "first token",
  spread: "share of the entropy of equal weights",
};
