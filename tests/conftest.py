"""Which tests run, and how they are compiled.

The long matrix is asked for: all of it (-m long), or a slice (--slice I/N). Of a test that is
`sampled(n)` one case in n is ordinary, always the same one; the others are long. Of one that is
`covered` so few are ordinary that each value of each parameter is in one.

Programs are compiled in a hurry, unless --optimized is given: XLA's optimizations change numbers
little, but are half of the time. Tests that are `optimized` are about what they do: memory, size,
equality to the bit. They hold either way, and are to be run with them too.

Tracing makes and drops objects without end, and Python looks through them for cycles again and
again, a tenth of the time. Here it looks less often, and never at what was there before the tests.
"""

import gc
import os
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import pytest

CHROMIUM = Path("/usr/bin/chromium")
MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000  # of memory, of which Linux gives a process 65,530
# What the fixtures of kernels do with them where no GPU or TPU is.
OFFLINE = {
    "interpreted": "raced",
    "assembled": "compiled",
    "h100_program": "compiled",
    "v5e": "compiled",
}

HURRY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
    parser.addoption(
        "--optimized", action="store_true", help="compile as users do, which takes twice as long"
    )
    parser.addoption(
        "--made-for",
        default=None,
        metavar="PLATFORM",
        help="make programs for this platform, such as cuda, and run them on this one",
    )
    parser.addoption(
        "--slice",
        default=None,
        metavar="I/N",
        help="run the I-th of N slices (1/N to N/N) of the long tests, beside the ordinary ones; "
        "with -m long, the slice alone",
    )


def pytest_configure(config):
    gc.set_threshold(50_000, 20, 10)
    known = jax.__version_info__ < (0, 11)  # later versions of XLA do not know the second flag
    if known and not config.getoption("--optimized"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {HURRY}"
    if jax.__version_info__ >= (0, 11):
        # Threads of XLA. Those of an interpreted GPU kernel wait for each other, each in one of
        # these; as many as there are cores may be too few, and then all wait for ever.
        os.environ.setdefault("NPROC", "16")
    if platform := config.getoption("--made-for"):
        from made_for import made_for

        scope = made_for(platform)
        scope.__enter__()
        config.add_cleanup(lambda: scope.__exit__(None, None, None))


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests of pages. Its own downloads and reports are off."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM} to open pages in")
    off = "background-networking", "component-update", "sync", "gpu", "quic"
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in off)]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Opens a page of the viewer: `with show(page) as it`. See viewer_pages.py."""
    from viewer_pages import shown

    return partial(shown, chromium, tmp_path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker goes through files of its own, whose programs it has, until one has none left."""
    if config.getoption("dist") != "load":
        return None  # another way was asked for
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config, items):
    for cases in _by_test(items, "covered"):
        few = cover(cases, lambda item: [(k, id(x)) for k, x in item.callspec.params.items()])
        for item in cases:
            if item not in few:
                item.add_marker("long")
    for item in items:
        for how in {OFFLINE[name] for name in OFFLINE.keys() & set(item.fixturenames)}:
            item.add_marker("gpu_offline")
            item.user_properties.append(("gpu_offline", how))
        sampled = item.get_closest_marker("sampled")
        if item.get_closest_marker("covered") or not (sampled and hasattr(item, "callspec")):
            continue
        if _hash(item) % sampled.args[0]:
            item.add_marker("long")
    if config.getoption("--slice"):
        index, count = parse_slice(config.getoption("--slice"))
    elif "long" in config.getoption("-m"):
        return  # -m decides
    else:
        index, count = 0, 1
    kept, left = [], []
    for item in items:
        ordinary = item.get_closest_marker("long") is None
        mine = _hash(item) % count == index - 1
        (kept if ordinary or mine else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_terminal_summary(terminalreporter):
    """How many configurations of kernels held."""
    passed = [x.user_properties for x in terminalreporter.stats.get("passed", ())]
    counts = Counter(how for found in passed for name, how in found if name == "gpu_offline")
    if counts:
        terminalreporter.write_line(
            f"kernels without a device: {counts['raced']} interpreted with race detection, "
            f"{counts['compiled']} compiled ahead"
        )


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item):
    """XLA maps every program that it keeps into memory, and aborts where there is no room."""
    if _hash(item) % 20:
        return
    if MAPS.exists() and MAPS.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


def _by_test(items, marker):
    """The cases of each test with the marker, but for those that are long already."""
    found = {}
    for item in items:
        marked = item.get_closest_marker(marker) and not item.get_closest_marker("long")
        if marked and hasattr(item, "callspec"):
            found.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return found.values()


def cover(cases, values_of):
    """A few of the cases, with every value that any has: each time that with most new ones."""
    chosen, left = [], {value for case in cases for value in values_of(case)}
    while left:
        chosen.append(max(cases, key=lambda case: len(left.intersection(values_of(case)))))
        left.difference_update(values_of(chosen[-1]))
    return chosen


def _hash(item):
    return zlib.crc32(item.nodeid.encode())


def parse_slice(text):
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise pytest.UsageError(f"--slice takes I/N with 1 <= I <= N, got {text}; try --slice 1/20")
    return int(index), int(count)


@pytest.fixture
def figure():
    """A bare figure that nobody saves."""
    from matplotlib.figure import Figure

    return Figure(figsize=(6, 5), dpi=200)


@pytest.fixture
def ax(figure):
    """Axes of 800 by 800 pixels."""
    return figure.add_axes((0.2, 0.1, 800 / 1200, 800 / 1000))
