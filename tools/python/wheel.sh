#!/usr/bin/env bash
# Builds the wheel of the Python package with a maturin that is fetched once, pinned and hash-checked, into .toolchain/python.
#
#   tools/python/wheel.sh [--profile PROFILE] [--out DIR]      default: release, dist/wheels
#   tools/python/wheel.sh --tools                              only fetches what building and testing take
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
tools=$root/.toolchain/python
lock=tools/python/tools.lock
profile=release out=dist/wheels only_tools=no
while [ $# -gt 0 ]; do
    case "$1" in
        --profile) profile=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --tools) only_tools=yes; shift ;;
        *) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ "$1" = --help ] && exit 0; exit 2 ;;
    esac
done

# For this interpreter and these versions.
stamp=$({ python3 -c 'import sys; print(sys.version_info[:2])'; cat "$lock"; } | cksum | cut -d' ' -f1)
if [ "$(cat "$tools.stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "wheel: fetching maturin, pytest and numpy (about 30 MB)"
    rm -rf "$tools"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --target "$tools" -r "$lock"
    echo "$stamp" >"$tools.stamp"
fi
[ "$only_tools" = no ] || exit 0
mkdir -p "$out"
rm -f "$out"/warpmail-*.whl
"$tools/bin/maturin" build --quiet --locked --profile "$profile" --strip --auditwheel skip --manifest-path tools/python/Cargo.toml --out "$out"
ls "$out"/warpmail-*.whl
