#!/usr/bin/env bash
# Builds this example against an installed warpmail, into a folder of the caller's choice.
#
#   tools/install.sh --prefix DIR
#   PKG_CONFIG_PATH=DIR/lib/pkgconfig NVCC=nvcc examples/03_own_handler/build.sh OUT && OUT/own_handler [twin]
#
# NVCC=none (or no nvcc on the path) leaves the device's half out: the program then runs on the twin.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -eq 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
mkdir -p "$1"
cd "$1"
nvcc=${NVCC:-$(command -v nvcc || echo none)}
read -ra cflags <<<"$(pkg-config --cflags warpmail-static)"
read -ra libs <<<"$(pkg-config --libs warpmail-static)"

# 1. The twin's half, by the C++ compiler.
c++ -std=c++17 -O2 "${cflags[@]}" -c "$here/handlers.cpp" -o handlers.o
if [ "$nvcc" = none ]; then
    c++ -std=c++17 -O2 "${cflags[@]}" "$here/main.cpp" handlers.o "${libs[@]}" -pthread -o own_handler
    exit 0
fi
# 2. The device's half: machine code for each GPU you have, and PTX of the last for newer ones.
"$nvcc" -std=c++17 -O3 "${cflags[@]}" -fatbin -gencode arch=compute_90,code=sm_90 \
    -gencode arch=compute_90,code=compute_90 "$here/handlers.cu" -o handlers.fatbin
# 3. Into the program with it. No CUDA runtime library is needed: warpmail talks to the driver.
cc -c "$here/fatbin.S" -o fatbin.o
"$nvcc" -std=c++17 -O2 -cudart none "${cflags[@]}" -DOWN_FATBIN -c "$here/main.cpp" -o main.o
"$nvcc" -cudart none main.o handlers.o fatbin.o "${libs[@]}" -Xcompiler -pthread -o own_handler
