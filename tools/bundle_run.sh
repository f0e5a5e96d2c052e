#!/usr/bin/env bash
# Runs the bundled GPU tests, each under a wall-clock limit, and says how many passed, failed and were waived.
#
#   bash run.sh [--only NAME] [--timeout SECONDS] [--logs DIR]
#
#   --only NAME   this test executable only (see tests/), or neighbour: PyTorch in one process with
#                 the arbiter; or python: the tests of the Python package; or examples
#   --timeout S   limit for each executable, default 300; what runs longer is killed and counts as failed
#   --logs DIR    also keep each executable's output there
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
only= limit=300 logs=
while [ $# -gt 0 ]; do
    case "$1" in
        --only) only=$2; shift 2 ;;
        --timeout) limit=$2; shift 2 ;;
        --logs) logs=$2; shift 2 ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ "$1" = --help ] && exit 0; exit 2 ;;
    esac
done
[ -d "$here/data" ] && export WARPMAIL_TEST_DATA=$here/data
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[ -n "$logs" ] && mkdir -p "$logs"

passed=0 failed=0 waived=0 ran=0
if [ -n "$only" ] && [ "$only" != neighbour ] && [ "$only" != python ] && [ "$only" != examples ] && [ ! -x "$here/tests/$only" ]; then
    echo "run: there is no test $only; there are: $(ls "$here/tests" | tr '\n' ' ')neighbour python examples" >&2
    exit 2
fi
sum() { sed -n "s/^test result:.* \([0-9]*\) $1.*/\1/p" "$2" | awk '{n += $1} END {print n + 0}'; }
"$here/warpmail" probe
for test in "$here"/tests/*; do
    name=$(basename "$test")
    [ -z "$only" ] || [ "$only" = "$name" ] || continue
    printf '\n== %s\n' "$name"
    timeout -k 10 "$limit" "$test" 2>&1 | tee "$scratch/log"
    rc=${PIPESTATUS[0]}
    ran=$((ran + 1))
    p=$(sum passed "$scratch/log") w=$(sum ignored "$scratch/log") n=$(sum failed "$scratch/log")
    if [ "$n" -eq 0 ] && [ "$rc" -ne 0 ]; then
        n=1
        echo "run: $name ended with exit code $rc (124 and 137: killed after ${limit}s)"
    elif [ $((p + w + n)) -eq 0 ]; then
        n=1
        echo "run: $name did not say what it tested"
    fi
    passed=$((passed + p))
    waived=$((waived + w))
    failed=$((failed + n))
    [ -z "$logs" ] || cp "$scratch/log" "$logs/$name.log"
done
# Each example on the GPU, as a user would run it.
if [ -z "$only" ] || [ "$only" = examples ]; then
    printf '\n== examples\n'
    export PYTHONDONTWRITEBYTECODE=1
    for example in "$here"/examples/* "$here"/python/[0-9]*.py; do
        [ -e "$example" ] || continue
        command=("$example")
        [ "${example%.py}" = "$example" ] || command=(env "PYTHONPATH=$here/python/site" python3 "$example")
        ran=$((ran + 1))
        if timeout -k 10 "$limit" "${command[@]}"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "run: the example $(basename "$example") ended with exit code $?"
        fi
    done
fi
# PyTorch in one process with the arbiter; it waives itself where there is no PyTorch.
if [ -z "$only" ] || [ "$only" = neighbour ]; then
    printf '\n== neighbour\n'
    timeout -k 10 "$limit" python3 "$here/frameworks/neighbour.py" --library "$here/libwarpmail.so" --pairs 0 2>&1 |
        tee "$scratch/log"
    rc=${PIPESTATUS[0]}
    ran=$((ran + 1))
    case $rc in
        0) passed=$((passed + 1)) ;;
        77) waived=$((waived + 1)) ;;
        *) failed=$((failed + 1)) && echo "run: neighbour ended with exit code $rc" ;;
    esac
    [ -z "$logs" ] || cp "$scratch/log" "$logs/neighbour.log"
fi
# The Python package; tests that need NumPy, PyTorch or a GPU waive themselves.
if [ -z "$only" ] || [ "$only" = python ]; then
    printf '\n== python\n'
    export PYTHONPATH=$here/python/site:$here/python/pytest PYTHONDONTWRITEBYTECODE=1
    timeout -k 10 "$limit" python3 -m pytest -q -rs -p no:cacheprovider --rootdir "$here/python" "$here/python/tests" 2>&1 |
        tee "$scratch/log"
    rc=${PIPESTATUS[0]}
    ran=$((ran + 1))
    count() { grep -E '^[0-9]+ [a-z]+.* in [0-9.]+s' "$scratch/log" | grep -oE "[0-9]+ ($1)" | awk '{n += $1} END {print n + 0}'; }
    n=$(count 'failed|errors?')
    [ "$n" -gt 0 ] || [ "$rc" -eq 0 ] || { n=1 && echo "run: python ended with exit code $rc (124 and 137: killed after ${limit}s)"; }
    passed=$((passed + $(count passed))) waived=$((waived + $(count skipped))) failed=$((failed + n))
    timeout -k 10 "$limit" python3 "$here/python/bench.py" --json || failed=$((failed + 1))
    timeout -k 10 "$limit" python3 "$here/python/bench_tensors.py"
    case $? in 0) ;; 77) waived=$((waived + 1)) ;; *) failed=$((failed + 1)) ;; esac
    # A quarter of the time that the figure is stated for; run it by itself with --seconds 60 --json FILE.
    timeout -k 10 "$limit" python3 "$here/python/trace_arbitration.py" --seconds 15
    case $? in 0) passed=$((passed + 1)) ;; 77) waived=$((waived + 1)) ;; *) failed=$((failed + 1)) ;; esac
    [ -z "$logs" ] || cp "$scratch/log" "$logs/python.log"
fi
printf '\n%d passed, %d failed, %d waived\n' "$passed" "$failed" "$waived"
[ "$failed" -eq 0 ] && [ "$ran" -gt 0 ]
