#!/usr/bin/env bash
# Builds the wheel as cheaply as can be, unpacks it, and runs the package's tests against it.
#
#   tools/python/test.sh [PYTEST OPTIONS]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bash tools/python/wheel.sh --profile dev --out "$scratch/wheel"
python3 -m zipfile -e "$scratch"/wheel/warpmail-*.whl "$scratch/site"
export PYTHONPATH=$scratch/site:$root/.toolchain/python PYTHONDONTWRITEBYTECODE=1
limit=300 # seconds: what hangs is a failure
timeout -k 10 "$limit" python3 -m pytest -q -p no:cacheprovider --rootdir tools/python "$@" tools/python/tests
timeout -k 10 60 python3 examples/python/01_relay.py
