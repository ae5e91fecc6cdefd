#!/usr/bin/env bash
# Prepare a corpus for training: recordings, manifests, noise, features, tokens; and lexicon, n-grams and HLG for lang=...
#   recipes/librispeech/prepare.sh corpus=synthetic
#   recipes/librispeech/prepare.sh corpus=directory corpus.name=mine corpus.dir=/my/speech tokens.vocab_size=300
#   recipes/librispeech/prepare.sh --stage 3 --stop-stage 3 corpus=librispeech_100 features.num_jobs=8
#   recipes/librispeech/prepare.sh --stage 5 corpus=devclean lang=3gram lang.text=[more.txt.gz]
# One Python process for all stages: loading torch and lhotse takes seconds. See prepare.py.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -n "${VIRTUAL_ENV:-}" ]; then
  python=$VIRTUAL_ENV/bin/python
elif [ -x "$repo/.venv/bin/python" ]; then
  python=$repo/.venv/bin/python
else
  python=$(command -v python3) || { echo "prepare.sh: no python3; run scripts/setup_env.sh first" >&2; exit 1; }
fi
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$repo/recipes/librispeech/prepare.py" "$@"
