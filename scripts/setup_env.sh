#!/usr/bin/env bash
# Make (or bring up to date) the virtual environment .venv with pinned dependencies and the project itself, editable.
#   scripts/setup_env.sh [extra]     extra: demo (default) or dev; see pyproject.toml
# Does nothing when the environment already has what pyproject.toml and constraints.txt ask for. Interrupt and run again at will.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-demo}
python=${PYTHON:-python3}
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "no $python found; install Python 3.10 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || fail "$python is $("$python" -V); Python 3.10 or newer is needed (set PYTHON to choose another)"
command -v "${CXX:-g++}" >/dev/null || fail "no ${CXX:-g++} found; the ops are compiled on this machine: install g++ (Debian: apt install g++), or set CXX"

want=$(cat pyproject.toml constraints.txt | cksum)
# dev contains demo, so a dev environment serves both.
for have in "$extra" dev; do
  if [ "$(cat ".venv/.installed-$have" 2>/dev/null)" = "$want" ]; then exit 0; fi
done

echo "setup: installing into .venv ($extra); the largest part is torch"
"$python" -m venv .venv || fail "could not make .venv (Debian: apt install python3-venv)"
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch setuptools
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt --editable ".[$extra]"
printf '%s' "$want" > ".venv/.installed-$extra"
