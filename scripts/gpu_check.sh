#!/usr/bin/env bash
# One command for a machine with a GPU, under 10 minutes: build the CUDA ops, run the tests marked cuda and the GPU benchmarks.
# Results go to $OUT if that is set, else to benchmarks/results/gpu-check. Needs a python3 with torch and nvcc; wheels of
# what else is missing (pytest, filelock, omegaconf, hydra-core, lhotse …) may lie in .whl/ and are then used, no registry asked.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu-check}
mkdir -p "$out"
failed=0

if compgen -G ".whl/*.whl" >/dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

step() {  # step NAME SECONDS COMMAND…: its output goes to $out/NAME.txt, too; a failure is noted and the next step runs
  local name=$1 seconds=$2; shift 2
  echo "=== $name"
  timeout "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  if [ "$status" -ne 0 ]; then echo "=== $name: exit status $status"; failed=1; fi
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"' || exit 1
{ nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv; "$python" -V; "$python" -c 'import torch; print("torch", torch.__version__)'; } \
  | tee "$out/machine.txt"
step build 200 "$python" -m ops.build
step tests 180 "$python" -m pytest -q -m cuda tests/ops tests/toolkit/test_search_cuda.py -p no:cacheprovider
step rnnt_loss 120 "$python" benchmarks/ops/rnnt_loss.py
step train_step 90 "$python" benchmarks/train_step.py
OUT=$out step search 100 "$python" benchmarks/search.py --device cuda --model paper --batches 1 8 64 512
step ctc 40 "$python" benchmarks/ops/ctc.py --device cuda
step fsa 60 "$python" benchmarks/ops/fsa.py --device cuda
exit $failed
