#!/usr/bin/env bash
# The gates of stream modules and the batches of taps as warps run them; then the twin, and the journal's warps by threads, under ThreadSanitizer, which
# must find nothing; then with the release stores taken out, which it must report.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
flags="-std=c++17 -g -O1 -fsanitize=thread -pthread -I$root/csrc/include -I$root/csrc"

# The gates of stream modules, the batches of taps and deliveries, as warps run them.
for program in gates passes carries deliveries; do
    # shellcheck disable=SC2086
    c++ ${flags/-fsanitize=thread/} -DWARPMAIL_HOST_WARPS "$root/tests/tsan/$program.cpp" -o "$scratch/$program"
    timeout 120 "$scratch/$program"
done

if ! echo 'int main() {}' | c++ -x c++ -fsanitize=thread -o "$scratch/probe" - 2>/dev/null; then
    echo "waived: this compiler has no ThreadSanitizer"
    exit 0
fi
# The sanitizer cannot live with the wide address randomisation of some kernels.
fixed="setarch $(uname -m) -R"
$fixed true 2>/dev/null || fixed=
for program in twin taps carries; do
    # shellcheck disable=SC2086
    c++ $flags "$root/tests/tsan/$program.cpp" -o "$scratch/clean"
    TSAN_OPTIONS="halt_on_error=1" timeout 120 $fixed "$scratch/clean"
    # shellcheck disable=SC2086
    c++ $flags -DWARPMAIL_PLANT_RACE "$root/tests/tsan/$program.cpp" -o "$scratch/planted"
    if TSAN_OPTIONS="halt_on_error=1" timeout 120 $fixed "$scratch/planted" >"$scratch/log" 2>&1; then
        echo "$program: the planted race was not reported"
        exit 1
    fi
    if ! grep -q 'WARNING: ThreadSanitizer: data race' "$scratch/log"; then
        cat "$scratch/log"
        echo "$program: the planted race ended the program, but not by a report"
        exit 1
    fi
done
echo "the twin is free of races; the planted races were reported"
