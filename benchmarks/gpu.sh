#!/bin/sh
# Measures jaxattn on an NVIDIA GPU in under seven minutes, on a machine with python3, numpy and jax
# for CUDA: benchmarks/gpu.sh [FOLDER FOR THE RESULTS] [--dry] [--only STAGE]...
# What else is imported (pure Python) is taken from the folder .gpu of the checkout where it is
# missing, and fetched into it where pip reaches the network; the machine's jax is left alone.
set -u
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
python=${PYTHON:-python3}
export PYTHONPATH="$root:$root/.gpu${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2
"$python" -c 'import numpy, jax' || { echo "gpu.sh: $python has no numpy and jax" >&2; exit 1; }
more='jaxtyping wadler-lindig absl-py'
if ! "$python" -c 'import jaxtyping, absl' 2>/dev/null; then
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --no-deps --upgrade --target "$root/.gpu" $more ||
        { echo "gpu.sh: missing: $more; on another machine: pip install --no-deps --target .gpu" \
            "$more; then bring the folder .gpu" >&2; exit 1; }
fi
# jax looks for CUDA's assembler among its wheels only, unless it is told of another.
in_wheels='import glob, sysconfig; print(*glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/bin/ptxas"))'
if [ -z "${CUDA_ROOT:-}$("$python" -c "$in_wheels")" ] && [ -x /usr/local/cuda/bin/ptxas ]; then
    export CUDA_ROOT=/usr/local/cuda
fi
exec "$python" -m benchmarks.gpu "$@"
