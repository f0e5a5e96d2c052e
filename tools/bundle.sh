#!/usr/bin/env bash
# Collects what a GPU box without Rust needs to run the GPU tests and benches: executables, test data and a run.sh.
#
#   tools/bundle.sh [--out DIR]      default dist/bundle
#   then, on the GPU box: bash dist/bundle/run.sh [--help]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
out=dist/bundle
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ "$1" = --help ] && exit 0; exit 2 ;;
    esac
done

# Test targets that know the GPU: custom harnesses that waive what the machine lacks.
gpu_tests="graph forms capi command"

# Figures name the commit; a tree with changes is told from the commit it stands on.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || commit="$commit+changes"
export WARPMAIL_COMMIT=$commit

bash tools/setup.sh
rm -rf "$out"
rm -rf tests/frameworks/__pycache__
mkdir -p "$out/tests" "$out/examples"
cargo build --release --locked -p warpmail -p warpmail-cli
cp "${CARGO_TARGET_DIR:-target}/release/warpmail" "${CARGO_TARGET_DIR:-target}/release/libwarpmail.so" "$out/"
cp -r tests/frameworks "$out/"
# The Python package, unpacked, with its tests and what runs them (pure Python, so any interpreter does).
bash tools/python/wheel.sh --out "$out/python"
python3 -m zipfile -e "$out"/python/warpmail-*.whl "$out/python/site"
mkdir "$out/python/pytest"
for package in _pytest pytest py.py iniconfig packaging pluggy pygments; do cp -r ".toolchain/python/$package" "$out/python/pytest/"; done
cp -r tools/python/tests tools/python/bench.py tools/python/bench_tensors.py tools/python/trace_arbitration.py examples/python/* "$out/python/"
find "$out/python" -name __pycache__ -prune -exec rm -rf {} +
cargo test --release --locked --no-run -p warpmail -p warpmail-cli --message-format=json >"$out/built.json"
cargo build --release --locked --examples --message-format=json >>"$out/built.json"
python3 - "$out" $gpu_tests <<'PY'
import json, shutil, sys
out, tests = sys.argv[1], set(sys.argv[2:])
found = set()
for line in open(out + "/built.json"):
    message = json.loads(line) if line.startswith("{") else {}
    name, exe, kind = message.get("target", {}).get("name"), message.get("executable"), message.get("target", {}).get("kind")
    if exe and kind == ["test"] and name in tests:
        shutil.copy(exe, f"{out}/tests/{name}")
        found.add(name)
    if exe and kind == ["example"]:
        shutil.copy(exe, f"{out}/examples/{name}")
sys.exit(f"no executable for {tests - found}" if tests - found else 0)
PY
rm "$out/built.json"
# The examples in C, and in C++ and CUDA with a handler of its own, against the static library that was just built.
if command -v pkg-config >/dev/null; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    cat >"$scratch/warpmail-static.pc" <<PC
Name: warpmail-static
Description: the tree that this bundle is made from
Version: 0
Cflags: -I$root/csrc/include -I$root/csrc
Libs: $(realpath "${CARGO_TARGET_DIR:-target}")/release/libwarpmail.a -lstdc++ -lgcc_s -lpthread -lm -ldl -lrt -lutil
PC
    export PKG_CONFIG_PATH=$scratch
    read -ra flags <<<"$(pkg-config --cflags --libs warpmail-static)"
    cc -std=c11 -O2 examples/02_relay.c "${flags[@]}" -o "$out/examples/02_relay"
    nvcc=$root/.toolchain/cuda/bin/nvcc
    [ -x "$nvcc" ] || nvcc=$(command -v nvcc || echo none)
    NVCC=$nvcc bash examples/03_own_handler/build.sh "$scratch/own"
    cp "$scratch/own/own_handler" "$out/examples/03_own_handler"
else
    echo "bundle: without the examples in C and C++: pkg-config is not installed"
fi
strip "$out"/warpmail "$out"/libwarpmail.so "$out"/tests/* "$out"/examples/* 2>/dev/null || true
cp tools/bundle_run.sh "$out/run.sh"
[ ! -d tests/data ] || cp -r tests/data "$out/data"
{
    echo "commit $commit"
    echo "built $(date -u +%Y-%m-%dT%H:%M:%SZ) by $(rustc --version)"
    echo "CUDA architectures ${WARPMAIL_CUDA_ARCHS:-default}"
    (cd "$out" && find . -type f ! -name MANIFEST -print0 | sort -z | xargs -0 sha256sum)
} >"$out/MANIFEST"
du -sh "$out"
echo "bundle: run it with: bash $out/run.sh"
