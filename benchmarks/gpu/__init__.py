"""`benchmarks/gpu.sh`: everything about one NVIDIA GPU that cannot be known without it.

Stages run one after another, each in processes of its own, so that none takes another with it: a
process that crashes or hangs costs the one case it was at, and another goes on behind it.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.table import table


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    text = f"# {data['name']}\n\nMeasured {data['date']} by `benchmarks/gpu.sh`.\n\n```\n"
    return {f"{data['name']}.md": f"{text}{table(data)}\n```\n".encode()}
