#!/usr/bin/env bash
# Installs warpmail, moves the installed tree elsewhere, and builds and runs programs against it: C11 by pkg-config, C++17
# by CMake, CUDA by nvcc, and the examples in C and C++. What the machine lacks is waived, printed and counted.
#
#   tests/consumers/run.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/tests/consumers
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 waived=0
# One architecture will do: what the kernels are compiled for is not what is tried here.
export WARPMAIL_CUDA_ARCHS=${WARPMAIL_CUDA_ARCHS:-90}

die() { printf 'consumers: %s\n' "$*" >&2; exit 1; }
pass() { passed=$((passed + 1)); echo "passed: $*"; }
waive() { waived=$((waived + 1)); echo "waived: $*"; }
run() { timeout 120 "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log"; die "failed: $*"; }; tail -1 "$scratch/log"; }

# --- the installer: refusals that say what to do; two runs that give the same tree, the second over
# an old one and as a package would be
for wrong in "" "--prefix relative/path" "--prefix" "--frobnicate" "--prefix /proc/nowhere"; do
    # shellcheck disable=SC2086
    if bash "$root/tools/install.sh" $wrong >"$scratch/log" 2>&1; then die "install.sh accepted '$wrong'"; fi
    grep -q '^install: ' "$scratch/log" || die "install.sh refused '$wrong' without a reason"
done
bash "$root/tools/install.sh" --help | grep -q -- '--prefix DIR' || die "install.sh --help does not teach"
bash "$root/tools/install.sh" --prefix "$scratch/first" 2>&1 | grep -v Compiling
mkdir -p "$scratch/second/opt"
cp -a "$scratch/first" "$scratch/second/opt/warpmail" # the second run finds files of the same names, and one from before
touch "$scratch/second/opt/warpmail/include/warpmail/gone.h"
bash "$root/tools/install.sh" --prefix /opt/warpmail --destdir "$scratch/second" >"$scratch/log" 2>&1 || { cat "$scratch/log"; die "the second installation failed"; }
diff -r "$scratch/first" "$scratch/second/opt/warpmail" || die "two installations differ"
tree=$scratch/moved/somewhere/else
mkdir -p "$(dirname "$tree")"
mv "$scratch/first" "$tree"
for place in "$root" "$scratch" "${CARGO_HOME:-$HOME/.cargo}/"; do
    if grep -rlaF "$place" "$tree"; then die "these installed files name $place"; fi
done
run "$tree/bin/warpmail" probe
pass "installed twice, moved, names no folder of this machine"

# --- the libraries export what the header declares, and nothing else
declared() { printf '#include <warpmail/warpmail.h>\n' | cc -E -P -I"$1/include" - | grep -oE '\bwarpmail_[a-z0-9_]+\(' | tr -d '(' | sort -u; }
exports() { # TREE: what is missing from or beyond the header, in both libraries
    declared "$1" >"$scratch/declared"
    [ "$(wc -l <"$scratch/declared")" -gt 40 ] || die "the header declares almost nothing"
    nm -D --defined-only "$1/lib/libwarpmail.so" | awk '{print $3}' | sort -u >"$scratch/shared"
    nm -g --defined-only "$1/lib/libwarpmail.a" 2>/dev/null | awk '$2 == "T" && $3 ~ /^warpmail_/ {print $3}' | sort -u >"$scratch/static"
    diff "$scratch/declared" "$scratch/shared" && diff "$scratch/declared" "$scratch/static"
}
exports "$tree" || die "the header and the libraries differ, see above"
# A planted function in the header, and one that only the libraries have, must both be found.
mkdir -p "$scratch/planted/include"
cp -r "$tree/include/warpmail" "$scratch/planted/include/"
ln -s "$tree/lib" "$scratch/planted/lib"
sed -i 's|^warpmail_status warpmail_image_destroy.*|&\nwarpmail_status warpmail_planted(void);|' "$scratch/planted/include/warpmail/warpmail.h"
if exports "$scratch/planted" >"$scratch/log" || ! grep -q '< warpmail_planted' "$scratch/log"; then die "a function without an export was not found"; fi
sed -i '/warpmail_planted/d; /^warpmail_status warpmail_image_destroy/d' "$scratch/planted/include/warpmail/warpmail.h"
if exports "$scratch/planted" >"$scratch/log" || ! grep -q '> warpmail_image_destroy' "$scratch/log"; then die "an export that the header lacks was not found"; fi
soname=$(readelf -d "$tree/lib/libwarpmail.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
[ -e "$tree/lib/$soname" ] || die "the soname $soname is not installed"
pass "$(wc -l <"$scratch/static") functions: header, shared and static library agree; planted differences were found"

# --- C11 by pkg-config, shared and static; the example in C
if command -v pkg-config >/dev/null; then
    export PKG_CONFIG_PATH=$tree/lib/pkgconfig
    # With this much address space (KiB) the twin gets its memory and the host's copy does not.
    enough=12000000
    flags="-std=c11 -O1 -Wall -Wextra -Wpedantic -Werror"
    for kind in warpmail warpmail-static; do
        for source in "$here/c11.c" "$here/tensors.c" "$root/examples/02_relay.c"; do
            # shellcheck disable=SC2046,SC2086
            cc $flags "$source" $(pkg-config --cflags --libs "$kind") -o "$scratch/program"
            LD_LIBRARY_PATH=$tree/lib run "$scratch/program" twin
            [ "$source" != "$here/c11.c" ] || (ulimit -v "$enough" && LD_LIBRARY_PATH=$tree/lib run "$scratch/program" hungry)
        done
        ldd "$scratch/program" >"$scratch/log"
        case "$kind-$(grep -c libwarpmail "$scratch/log" || true)" in
            warpmail-1 | warpmail-static-0) pass "C11 by pkg-config $kind, tensors, and examples/02_relay.c" ;;
            *) cat "$scratch/log"; die "$kind linked the wrong library" ;;
        esac
    done
else
    waive "C11 by pkg-config, shared and static (pkg-config is not installed)"
fi

# --- C and C++17 by CMake, shared, static and headers alone
cmake=$root/.toolchain/cmake/bin/cmake
[ -x "$cmake" ] || cmake=$(command -v cmake || true)
if [ -n "$cmake" ]; then
    "$cmake" -S "$here" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$tree" -DCMAKE_BUILD_TYPE=Release >"$scratch/log" 2>&1 &&
        "$cmake" --build "$scratch/build" >>"$scratch/log" 2>&1 || { cat "$scratch/log"; die "the CMake consumers do not build"; }
    for program in cxx17_warpmail cxx17_static c11_warpmail c11_static; do run "$scratch/build/$program"; done
    pass "C and C++17 by CMake: shared, static, headers"
    sed 's/find_package(warpmail 0.1 /find_package(warpmail 0.2 /' "$here/CMakeLists.txt" >"$scratch/CMakeLists.txt"
    if "$cmake" -S "$scratch" -B "$scratch/refused" -DCMAKE_PREFIX_PATH="$tree" >"$scratch/log" 2>&1; then die "0.2 was asked for, and $soname was taken"; fi
    grep -q 'version "0.2"' "$scratch/log" || { cat "$scratch/log"; die "CMake refused for another reason"; }
    pass "CMake refuses another 0.x"
else
    waive "C and C++17 by CMake (cmake is not installed; tools/setup.sh --tests fetches one)"
fi

# --- a handler of one's own
export PKG_CONFIG_PATH=$tree/lib/pkgconfig
nvcc=$root/.toolchain/cuda/bin/nvcc
[ -x "$nvcc" ] || nvcc=$(command -v nvcc || true)
[ "${WARPMAIL_NVCC:-}" != none ] || nvcc=
if ! command -v pkg-config >/dev/null; then
    waive "handlers of one's own (pkg-config is not installed)"
else
    NVCC=none bash "$root/examples/03_own_handler/build.sh" "$scratch/own"
    run "$scratch/own/own_handler" twin
    pass "examples/03_own_handler without nvcc"
    if [ -n "$nvcc" ]; then
        NVCC=$nvcc bash "$root/examples/03_own_handler/build.sh" "$scratch/own"
        run "$scratch/own/own_handler" twin
        cd "$scratch/own"
        read -ra cflags <<<"$(pkg-config --cflags warpmail-static)"
        read -ra libs <<<"$(pkg-config --libs warpmail-static)"
        "$nvcc" -std=c++17 -O3 "${cflags[@]}" -fatbin -arch=sm_90 "$here/cuda/own.cu" -o own.fatbin
        c++ -std=c++17 -O2 -Wall -Wextra -Werror "${cflags[@]}" -c "$here/cuda/twin.cpp"
        cc -c "$here/cuda/fatbin.S"
        "$nvcc" -std=c++17 -O2 -cudart none "${cflags[@]}" -c "$here/cuda/main.cpp" -o main.o
        "$nvcc" -cudart none main.o twin.o fatbin.o "${libs[@]}" -Xcompiler -pthread -o own
        run ./own
        pass "handlers of one's own by nvcc, and examples/03_own_handler, on the twin"
        verdict=$("$tree/bin/warpmail" probe | grep '^=> ')
        if [ "${verdict#*twin}" = "$verdict" ]; then
            run ./own cuda
            pass "handlers of one's own on the GPU"
        else
            waive "handlers of one's own on the GPU (${verdict#=> })"
        fi
    else
        waive "handlers of one's own by nvcc (no nvcc, or WARPMAIL_NVCC=none)"
        waive "handlers of one's own on the GPU (no nvcc, or WARPMAIL_NVCC=none)"
    fi
fi
echo "consumers: $passed passed, $waived waived"
