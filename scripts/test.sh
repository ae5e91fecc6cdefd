#!/usr/bin/env bash
# Environment, style, types, tests. Arguments go to pytest; with none, the whole suite but the tests marked slow.
#   ./scripts/test.sh                       everything CI runs
#   ./scripts/test.sh --slow                with the slow tests
#   ./scripts/test.sh tests/ops -k rnnt     part of it
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_env.sh dev
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
python -m ops.build
# Two workers of one thread each beat one worker of two threads: most tests are small.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec python -m pytest -n "${PYTEST_WORKERS:-2}" "$@"
