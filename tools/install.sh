#!/usr/bin/env bash
# Builds warpmail for release and installs what C, C++ and CUDA programs need, and the command.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: tools/install.sh --prefix DIR [--destdir DIR]

  --prefix DIR    where it will be used, such as /usr/local or $HOME/.local; an absolute path
  --destdir DIR   write below this folder instead (for packages): files go to DESTDIR/PREFIX

installs, below the prefix:
  include/warpmail/                    C API (warpmail.h), bytes (abi.h), device API (device.hpp, handler.hpp)
  lib/libwarpmail.so.*, libwarpmail.a  shared and static library
  lib/pkgconfig/                       warpmail.pc (shared), warpmail-static.pc
  lib/cmake/warpmail/                  find_package(warpmail): warpmail::warpmail, warpmail::static, warpmail::headers
  bin/warpmail                         the command

then, with PKG_CONFIG_PATH=PREFIX/lib/pkgconfig:
  cc -std=c11 prog.c $(pkg-config --cflags --libs warpmail) -Wl,-rpath,$(pkg-config --variable=libdir warpmail)
  cc -std=c11 prog.c $(pkg-config --cflags --libs warpmail-static)

Nothing installed names the place it was built or installed in: the tree may be moved. Running it again replaces the files.
Needs cargo and a C++ compiler; with an nvcc the kernels are embedded (tools/setup.sh fetches one), without one the
libraries run on the CPU twin and say so. Environment: WARPMAIL_NVCC, WARPMAIL_CUDA_ARCHS, CARGO_TARGET_DIR.
TEXT
}

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

prefix='' destdir=''
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix | --destdir)
            [ $# -ge 2 ] || die "$1 needs a folder; see --help"
            if [ "$1" = --prefix ]; then prefix=$2; else destdir=$2; fi
            shift 2
            ;;
        --prefix=*) prefix=${1#*=}; shift ;;
        --destdir=*) destdir=${1#*=}; shift ;;
        -h | --help) usage; exit 0 ;;
        *) die "what is $1? See --help" ;;
    esac
done
[ -n "$prefix" ] || die "--prefix is missing: say where to, such as --prefix \$HOME/.local; see --help"
case "$prefix" in /*) ;; *) die "the prefix $prefix is not an absolute path" ;; esac
case "$destdir" in '' | /*) ;; *) destdir=$PWD/$destdir ;; esac
dest=$destdir$prefix
mkdir -p "$dest" 2>/dev/null && [ -w "$dest" ] || die "$dest cannot be written: choose another prefix, or become who may"
command -v cargo >/dev/null || die "cargo is needed: install a Rust toolchain (rustup.rs), 1.88 or newer"
command -v c++ >/dev/null || die "a C++17 compiler is needed (Debian: apt-get install g++)"

cd "$root"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
abi=${version%.*}
target=${CARGO_TARGET_DIR:-$root/target}/install

# Panic messages and debug information would name the folders of this machine: rename the first, leave out the second.
unit=$(printf '\037')
flags="--remap-path-prefix=$root=warpmail$unit--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
build() {
    env -u RUSTFLAGS CARGO_ENCODED_RUSTFLAGS="$flags" CARGO_TARGET_DIR="$target" \
        cargo "$1" --release --locked --config profile.release.debug=false "${@:2}"
}
say "building warpmail $version"
build build -p warpmail -p warpmail-cli || die "the build failed, see above"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The static library once more by itself: the compiler then says what its users must link.
build rustc -p warpmail --lib --crate-type staticlib -- --print native-static-libs 2>&1 | tee "$log" || die "the build failed, see above"
native=$(sed -n 's/.*native-static-libs: //p' "$log" | tail -1)
[ -n "$native" ] || die "the compiler did not say what the static library needs"

from=$target/release
say "installing to $dest"
install -d "$dest"/{bin,lib/pkgconfig,lib/cmake/warpmail}

# Headers: in the source they find each other by two -I, installed by one, all below include/warpmail.
rm -rf "$dest/include/warpmail"
install -d "$dest"/include/warpmail/{protocol,device,twin}
header() {
    sed -E 's|^([[:space:]]*#[[:space:]]*include[[:space:]]+")(protocol\|device\|twin)/|\1warpmail/\2/|' "$1" >"$dest/include/warpmail/$2"
    chmod 644 "$dest/include/warpmail/$2"
}
for f in csrc/include/warpmail/*; do header "$f" "$(basename "$f")"; done
for f in csrc/protocol/*.hpp csrc/device/*.cuh csrc/device/*.hpp csrc/twin/*.hpp; do header "$f" "${f#csrc/}"; done

# A program may be running with the old library: replace the files, never write into them.
place() {
    install -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
}
place 755 "$from/warpmail" "$dest/bin/warpmail"
place 755 "$from/libwarpmail.so" "$dest/lib/libwarpmail.so.$version"
place 644 "$from/libwarpmail.a" "$dest/lib/libwarpmail.a"
if command -v strip >/dev/null; then
    strip --strip-debug "$dest/lib/libwarpmail.a" "$dest/lib/libwarpmail.so.$version"
    strip "$dest/bin/warpmail"
fi
ln -sfn "libwarpmail.so.$version" "$dest/lib/libwarpmail.so.$abi"
ln -sfn "libwarpmail.so.$abi" "$dest/lib/libwarpmail.so"

template() {
    sed -e "s|@VERSION@|$version|g" -e "s|@ABI@|$abi|g" -e "s|@NATIVE_LIBS@|$native|g" \
        -e "s|@NATIVE_LIBS_CMAKE@|${native// /;}|g" "tools/packaging/$(basename "$1").in" >"$dest/$1"
    chmod 644 "$dest/$1"
}
template lib/pkgconfig/warpmail.pc
template lib/pkgconfig/warpmail-static.pc
template lib/cmake/warpmail/warpmailConfig.cmake
template lib/cmake/warpmail/warpmailConfigVersion.cmake
say "done: PKG_CONFIG_PATH=$prefix/lib/pkgconfig, CMAKE_PREFIX_PATH=$prefix"
