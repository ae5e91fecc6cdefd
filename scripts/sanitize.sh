#!/usr/bin/env bash
# Build the CPU ops with a sanitizer and run tests under it. Not part of CI: it takes minutes. Needs g++ with its sanitizer runtimes.
#   ./scripts/sanitize.sh address [TESTS...]   AddressSanitizer + UndefinedBehaviorSanitizer; pytest arguments, default: FSA tests
#   ./scripts/sanitize.sh thread               ThreadSanitizer on scripts/threaded_ops.py
# Builds go to build/sanitize-*, apart from the usual ones. A finding ends the run with a report and a non-zero exit.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?address or thread}
shift
python=${PYTHON:-python}
cxx=${CXX:-g++}
runtime() { "$cxx" -print-file-name="lib$1.so"; }

export LATTICA_CACHE="$PWD/build/sanitize-$kind" PYTHONPATH=. PYTHONMALLOC=malloc
common="-O1 -g1 -fno-omit-frame-pointer"
case $kind in
  address)
    flags="$common -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined"
    preload="$(runtime asan) $(runtime ubsan) $(runtime stdc++)"
    # Python and torch keep memory until the end; their static constructors run in any order.
    options=(ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99:detect_odr_violation=0
             UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1)
    if [ $# = 0 ]; then
      set -- tests/ops/test_{fsa_fuzz,fsa_properties,fsa_algorithms,fsa_scores,fsa_levels,fsa_batch,fsa_dense,fsa_dense_batch}.py \
        tests/ops/test_{online_dense,ctc_loss,ctc_batch,forced_align,rnnt_decode,ngram}.py
    fi
    run=("$python" -m pytest -q -p no:cacheprovider "$@")
    ;;
  thread)
    flags="$common -fsanitize=thread"
    preload="$(runtime tsan)"
    # Torch is not instrumented: what it does is not looked at, and our loops run on threads of their own (csrc/parallel.h).
    options=(TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=99 halt_on_error=0")
    run=("$python" scripts/threaded_ops.py)
    ;;
  *) echo "address or thread, not $kind" >&2; exit 2 ;;
esac
export LATTICA_CXX_FLAGS="$flags"
# Python must begin with the runtime, as loading an instrumented library later fails; the compiler, at first use, is better off without.
mkdir -p build
printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s "$@"\n' "$cxx" > build/sanitize-cxx
chmod +x build/sanitize-cxx
export CXX="$PWD/build/sanitize-cxx"
sanitized() { env LD_PRELOAD="$preload" "${options[@]}" "$@"; }
[ "$kind" = thread ] || sanitized "$python" -m ops.build  # lest the first test run out of time
sanitized "${run[@]}"
