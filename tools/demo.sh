#!/usr/bin/env bash
# Sets up, builds, and runs the main job: near-duplicate lines in text. Arguments go to `warpmail run`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
from=$PWD
cd "$root"
bash tools/setup.sh
cargo build --release --locked -p warpmail-cli
warpmail=${CARGO_TARGET_DIR:-$root/target}/release/warpmail
"$warpmail" probe
if [ $# -eq 0 ]; then
    echo "demo: lines of this repository's own text and sources that nearly repeat an earlier line"
    exec "$warpmail" run README.md ARCHITECTURE.md docs csrc src
fi
cd "$from"
exec "$warpmail" run "$@"
