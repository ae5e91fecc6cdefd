#!/usr/bin/env bash
# From a fresh machine to a WER table: environment, ops, embedded corpus, training, decoding.
#   ./scripts/quickstart.sh [overrides]      e.g. trainer.num_epochs=4
# About 14 minutes on two CPU cores. Interrupt it whenever you like; run again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
step() { printf '\n=== %s  [%d min %02d s since the start]\n' "$1" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)); }
trap 'status=$?; if [ $status -ne 0 ]; then printf "\nquickstart stopped (exit status %s). Run ./scripts/quickstart.sh again: it goes on from here.\n" $status >&2; fi' EXIT

step "1/5 environment (.venv)"
scripts/setup_env.sh demo
export PATH="$PWD/.venv/bin:$PATH"

step "2/5 compiling the ops"
python -m ops.build

step "3/5 corpus, features, tokens (data/synthetic)"
recipes/librispeech/prepare.sh experiment=quickstart "$@"

step "4/5 training (exp/quickstart)"
python recipes/librispeech/train.py experiment=quickstart "$@"

step "5/5 decoding unseen voices and sentences"
python recipes/librispeech/decode.py experiment=quickstart "$@"
step "done"
