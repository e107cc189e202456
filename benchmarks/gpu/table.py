"""What a results file shows, in at most about sixty lines, what matters most last."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Records = Mapping[tuple[str, str], Mapping[str, Any]]
"""Of cases, by stage and name."""


class Target(NamedTuple):
    what: str
    limit: Callable[[Records], float | None]
    number: Callable[[Records], float | None]
    least: bool
    """Whether the number has to be at least the limit, or at most."""


def _share(case: str, kind: str, limit: float) -> Target:
    number = lambda cases: _time(cases, ("plain", case), kind, "share")
    return Target(f"{kind} {case}, share of a product", lambda cases: limit, number, True)


def _over(case: str, ratio: str, limit: float | None = None) -> Target:
    """limit: None for 1.5 of the mask's share of the tiles."""

    def most(cases: Records) -> float | None:
        tiles = cases.get(("options", case), {}).get("tiles")
        return limit if limit is not None else tiles and 1.5 * tiles

    number = lambda cases: cases.get(("options", case), {}).get("ratios", {}).get(ratio)
    kind = "" if case.startswith("observed") else f"{ratio.partition(' / ')[0]} "
    what = f"{kind}{case}, times of {'full' if limit is None else 'plain'}"
    return Target(what, most, number, False)


TARGETS = (
    *(_share(f"{mask} d128 t8192", "forward", x) for mask, x in (("full", 0.85), ("causal", 0.78))),
    *(_share(f"{mask} d128 t8192", "backward", x) for mask, x in (("full", 0.6), ("causal", 0.58))),
    *(_share(f"{mask} d64 t8192", "forward", x) for mask, x in (("full", 0.66), ("causal", 0.62))),
    *(_over("window1024 d128 t32768", f"{x} / other {x}") for x in ("forward", "backward")),
    *(
        _over(f"causal {option} d128 t8192", f"{x} / other {x}", 1.25)
        for option in ("softcap30", "alibi")
        for x in ("forward", "backward")
    ),
    _over("observed causal d128 t8192", "observed / forward", 1.7),
)


def table(data: Mapping[str, Any]) -> str:
    records: Sequence[Mapping[str, Any]] = data["records"]
    cases = {(x["stage"], x["case"]): x for x in records if "case" in x}
    of = lambda stage: {name: x for (its, name), x in cases.items() if its == stage}
    parts = (
        lambda: _machine(of("facts"), data),
        lambda: [
            "Beside others: share of a product (times of jaxattn's); a gradient has both passes"
        ],
        lambda: _peers(of("peers")),
        lambda: ["Plans, forward: share, seconds to compile"],
        lambda: _sweep(of("sweep")),
        lambda: ["TFLOP/s (share of a product), forward; backward"],
        lambda: _plain(of("plain")),
        lambda: ["Options: times of the other: plain, or Blockwise"],
        lambda: _options(of("options")),
        lambda: _problems(cases),
        lambda: _right(of("right")),
        lambda: _targets(cases),
    )
    lines = []
    for part in parts:
        try:
            lines += part()
        except Exception as error:  # the others are worth seeing
            lines.append(f"a part is missing here: {type(error).__name__}: {error}")
    stages = [x for x in records if "case" not in x]
    lines.append("; ".join(f"{x['stage']}: {x['state']}, {x['seconds']:.0f} s" for x in stages))
    if data["dry"]:
        lines.append("Dry: on a CPU, at sizes that say nothing. No number here is a result.")
    return "\n".join(line[:220] for line in lines)


def _time(cases: Records, case: tuple[str, str], kind: str, what: str) -> float | None:
    return cases.get(case, {}).get("times", {}).get(kind, {}).get(what)


def _machine(facts: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    got = {name: facts.get(name, {}) for name in ("software", "card", "product", "first call")}
    versions = got["software"].get("versions", {})
    clocks = facts.get("clocks, loaded", {})
    name = got["card"].get("name") or got["software"].get("device")
    its = [str(got["card"].get(x)) for x in ("driver_version", "compute_mode", "power.limit")]
    its += [f"loaded {clocks.get('clocks.sm')} at {clocks.get('power.draw')}"]
    products = ", ".join(
        f"{name} {x['tflops']:.0f}"
        for name, x in got["product"].get("times", {}).items()
        if name != "product"
    )
    return [
        f"{name}, driver {', '.join(its)}",
        ", ".join(f"{name} {x}" for name, x in versions.items()),
        f"{data['date']}; seed {data['seed']}; a product in TFLOP/s: {products}; first call: "
        f"{got['first call'].get('status')}, {got['first call'].get('auto')}",
    ]


def _peers(cases: Mapping[str, Any]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for name, x in cases.items():
        who, _, what = name.rpartition(", ")
        if "times" in x:
            ours = x["times"]["jaxattn"]
            rows.setdefault(what, [f"jaxattn {ours['share']:.2f}"])
            theirs = x["times"][x["who"]]
            rows[what].append(f"{who} {theirs['share']:.2f} (x{1 / x['ratio']:.2f})")
        elif what:
            rows.setdefault(what, []).append(f"{who} {x['status']}")
    return [f"{what}: {'; '.join(found)}" for what, found in rows.items()]


def _sweep(cases: Mapping[str, Any]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for name, x in cases.items():
        what, _, plan = name.rpartition(" ")
        its = x.get("times", {}).get("forward")
        found = f"{its['share']:.3f}, {its['compile_s']:.1f}" if its else x["status"]
        rows.setdefault(what, []).append(f"{plan} {found}")
    return [f"{what}: {'; '.join(found)}" for what, found in rows.items()]


def _plain(cases: Mapping[str, Any]) -> list[str]:
    rows: dict[str, list[tuple[int, str]]] = {}
    for name, x in cases.items():
        what, _, t = name.rpartition(" t")
        times = [x.get("times", {}).get(kind) for kind in ("forward", "backward")]
        found = "; ".join(f"{its['tflops']:.0f} ({its['share']:.2f})" for its in times if its)
        rows.setdefault(what, []).append((int(t) if t.isdigit() else 0, found or x["status"]))
    cells = lambda row: " | ".join(f"t{t} {found}" for t, found in sorted(row))
    return [f"{what}: {cells(row)}" for what, row in rows.items()]


def _options(cases: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, x in cases.items():
        if "times" not in x:
            lines.append(f"{name}: {x['status']}")
            continue
        ratios = [f"{kind.split(' / ')[0]} {ratio:.3f}" for kind, ratio in x["ratios"].items()]
        ms = [f"{kind} {its['ms']:.4g} ms" for kind, its in x["times"].items() if kind != "product"]
        lines.append(f"{name}: {', '.join(ratios)}; {', '.join(ms)}")
    return lines


def _problems(cases: Records, most: int = 6) -> list[str]:
    bad = [(key, x) for key, x in cases.items() if x["status"] in ("failed", "ended", "wrong")]
    lines = [
        f"{x['status'].upper()} {stage}, {name}: {' '.join(str(x.get('reason')).split())}"[:170]
        for (stage, name), x in bad[:most]
    ]
    out = sum(x["status"] == "left out" for x in cases.values())
    more = f", {len(bad) - most} of them only in the results file" if len(bad) > most else ""
    return [*lines, f"{len(bad)} cases without a result{more}; {out} left out"]


def _right(cases: Mapping[str, Any]) -> list[str]:
    done = [x for x in cases.values() if x["status"] == "done"]
    worst = max((x.get("worst", 0.0) for x in done), default=0.0)
    bad = [name for name, x in cases.items() if x["status"] in ("failed", "ended")]
    return [
        f"Beside float64: {len(done)} of {len(cases)} right, twice the same bits; the largest "
        f"error {worst:.2f} of what is allowed; not right: {', '.join(bad) or 'none'}"
    ]


def _targets(cases: Records) -> list[str]:
    lines = []
    for target in TARGETS:
        limit, number = target.limit(cases), target.number(cases)
        if number is None or limit is None:
            lines.append(f"not measured: {target.what}")
            continue
        met = number >= limit if target.least else number <= limit
        sign = ">=" if target.least else "<="
        lines.append(
            f"{'met' if met else 'MISSED'}: {target.what}: {number:.3f} {sign} {limit:.3f}"
        )
    return lines
