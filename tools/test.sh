#!/usr/bin/env bash
# Sets up and runs every gate. No GPU is needed: what needs one is waived, counted and printed.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
target=${CARGO_TARGET_DIR:-$root/target}

all="fmt clang-format shell layers header build-no-nvcc bindings clippy rustdoc ptxas test examples tsan model consumers python"
quick="fmt clang-format shell layers header clippy"

usage() {
    cat <<TEXT
usage: tools/test.sh [--quick | --list | GATE...]

  (nothing)  every gate: $all
  --quick    the fast ones: $quick
  --list     their names, one a line
TEXT
}

sources() { git ls-files -co --exclude-standard -- "$@" | while read -r f; do [ -f "$f" ] && echo "$f"; done; }

gate_fmt() { cargo fmt --all --check; }

gate_clang-format() {
    local clang_format=.toolchain/bin/clang-format
    [ -x "$clang_format" ] || clang_format=$(command -v clang-format-18 || command -v clang-format) || return 1
    sources '*.h' '*.hpp' '*.cuh' '*.cu' '*.cpp' '*.c' | xargs "$clang_format" --dry-run -Werror
}

gate_shell() {
    local f
    for f in $(sources '*.sh' .ci/run); do bash -n "$f" || return 1; done
    if command -v shellcheck >/dev/null; then sources '*.sh' .ci/run | xargs shellcheck -S warning; else echo "waived: shellcheck is not installed"; fi
}

gate_layers() { python3 tools/check_layers.py --self-test; }

# The C header as C11 and C++17; every other header alone.
gate_header() {
    local f flags="-Wall -Wextra -Wpedantic -Werror -fsyntax-only -Icsrc/include -Icsrc"
    for f in csrc/include/warpmail/*.h; do
        printf '#include "%s"\n' "${f#csrc/include/}" >"$scratch/h.c"
        cp "$scratch/h.c" "$scratch/h.cpp"
        cc -std=c11 $flags "$scratch/h.c" && c++ -std=c++17 $flags "$scratch/h.cpp" || return 1
    done
    for f in csrc/include/warpmail/*.hpp csrc/protocol/*.hpp csrc/twin/*.hpp; do
        f=${f#csrc/include/}
        printf '#include "%s"\n' "${f#csrc/}" >"$scratch/h.cpp"
        c++ -std=c++17 -Wno-pedantic ${flags/-Wpedantic/} "$scratch/h.cpp" || return 1
    done
}

# The bindings kept for machines without libclang are what bindgen makes of the header.
gate_bindings() {
    local f kept="src/bindings.rs src/capi/bindings.rs" stale=
    for f in $kept; do install -D "$f" "$scratch/$f"; done
    WARPMAIL_NVCC=none WARPMAIL_UPDATE_BINDINGS=1 cargo build --locked -p warpmail || return 1
    for f in $kept; do
        cmp -s "$f" "$scratch/$f" && continue
        cp "$scratch/$f" "$f"
        echo "$f is stale: build with WARPMAIL_UPDATE_BINDINGS=1 and commit it"
        stale=yes
    done
    [ -z "$stale" ]
}

gate_build-no-nvcc() {
    WARPMAIL_NVCC=none cargo build --locked -p warpmail-cli || return 1
    "$target/debug/warpmail" probe | tee "$scratch/probe" && grep -q 'not built' "$scratch/probe"
}

# Neither looks at a kernel; the gate `test` compiles them.
gate_clippy() { WARPMAIL_NVCC=none cargo clippy --workspace --all-targets --locked -- -D warnings; }

gate_rustdoc() { WARPMAIL_NVCC=none RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked; }

gate_ptxas() { bash tools/ptxas.sh --check; }

gate_test() { cargo test --workspace --locked; }

# The examples in Rust; those in C and C++ are the gate consumers', those in Python the gate python's.
gate_examples() {
    local f
    cargo build --workspace --locked --examples || return 1
    for f in examples/*.rs; do timeout -k 10 60 "$target/debug/examples/$(basename "$f" .rs)" || return 1; done
}

gate_tsan() { bash tests/tsan/run.sh; }

gate_model() { bash tests/model/run.sh; }

# Programs in C, C++ and CUDA against an installed warpmail.
gate_consumers() { bash tests/consumers/run.sh; }

# The Python package: its wheel, and its tests against that.
gate_python() { bash tools/python/test.sh; }

chosen=$all
case "${1:-}" in
    "") ;;
    --quick) chosen=$quick ;;
    --list) echo "$all" | tr ' ' '\n'; exit 0 ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) chosen="$*" ;;
esac
for gate in $chosen; do
    case " $all " in *" $gate "*) ;; *) echo "test: there is no gate $gate" >&2; usage >&2; exit 2 ;; esac
done

bash tools/setup.sh --tests || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 table=
for gate in $chosen; do
    printf '\n== %s\n' "$gate"
    begin=$SECONDS
    if ! "gate_$gate" </dev/null; then
        printf '\ngate %s failed after %ds\n%d passed, 1 failed\n' "$gate" $((SECONDS - begin)) "$passed"
        exit 1
    fi
    passed=$((passed + 1))
    table+=$(printf '%-14s %4ds' "$gate" $((SECONDS - begin)))$'\n'
done
printf '\n%s' "$table"
echo "gates: $passed passed, 0 failed"
echo "$passed passed, 0 failed"
