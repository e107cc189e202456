"""What is compiled for an H100, without one, and what the assembler says of it."""

import contextlib
import os
import re
import tempfile

import jax
import pytest


@contextlib.contextmanager
def assembler():
    """From a function and the (shape, dtype) of its arguments to what is said of its kernels."""
    device = pytest.importorskip("test_h100").device()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    card = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")

    def say(f, *shapes):
        arrays = [jax.ShapeDtypeStruct(*x, sharding=device) for x in shapes]
        with _written() as text, use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
            jax.jit(f).lower(*arrays).compile()
        return text[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
        yield say


def check_clean(said):
    assert "Compiling entry function" in said
    assert sum(map(int, re.findall(r"(\d+) bytes spill stores", said))) == 0
    assert "wgmma serialized" not in said.lower()
    assert "C7512" not in said, "wgmma is serialized"
    assert "C7508" not in said, "setmaxnreg is ignored"


@contextlib.contextmanager
def _written():
    """What C++ writes to the standard streams, as one string in a list after."""
    kept, text = [os.dup(1), os.dup(2)], []
    with tempfile.TemporaryFile() as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield text
        finally:
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))
