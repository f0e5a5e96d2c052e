#!/usr/bin/env bash
# What ptxas says of the kernels: registers, spills, stack, shared memory, per architecture.
# --check: fails when a kernel spills or uses local memory. Without nvcc: waived.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
nvcc=
for candidate in "${WARPMAIL_NVCC:-}" "${NVCC:-}" .toolchain/cuda/bin/nvcc "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -x "$candidate" ]; then nvcc=$candidate; break; fi
done
if [ -z "$nvcc" ]; then
    echo "waived: no nvcc"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bad=0
IFS=, read -ra archs <<<"${WARPMAIL_CUDA_ARCHS:-80,87,90,100}"
printf '%-30s %-6s %9s %6s %6s %6s\n' kernel arch registers stack spills shared
# All at once, as many as there are processors; each leaves what ptxas said, or why it failed.
jobs=()
for source in csrc/device/warpmail.cu csrc/device/gates.cu tools/cli/handlers/*.cu; do
    [ -f "$source" ] || continue
    for arch in "${archs[@]}"; do
        jobs+=("$source $arch ${#jobs[@]}")
    done
done
compile() {
    local source=$1 arch=$2 job=$3 linked=()
    if [ "$source" = csrc/device/gates.cu ]; then linked=(-rdc=true); fi # with the device runtime
    "$nvcc" "${linked[@]}" -std=c++17 -O3 -cubin -arch="sm_$arch" -Icsrc/include -Icsrc -Itools/cli -Xptxas -v \
        -o "$scratch/$job.cubin" "$source" 2>"$scratch/$job.log" || touch "$scratch/$job.failed"
}
export -f compile
export nvcc scratch
printf '%s\n' "${jobs[@]}" | xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' _
for job in "${jobs[@]}"; do
    read -r source arch number <<<"$job"
    log=$scratch/$number.log
    if [ -e "$scratch/$number.failed" ]; then
        echo "$source for sm_$arch:"
        cat "$log"
        exit 1
    fi
    python3 - "$log" "$arch" <<'PY' || bad=1
import re, sys
text, bad = open(sys.argv[1]).read(), False
for part in text.split("Compiling entry function")[1:]:
    name = re.search(r"'([^']+)'", part).group(1)
    number = lambda pattern: sum(int(n) for n in re.findall(pattern, part))
    registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
    stack, spills = number(r"(\d+) bytes stack frame"), number(r"(\d+) bytes spill (?:stores|loads)")
    print(f"{name:30} sm_{sys.argv[2]:3} {registers:9} {stack:6} {spills:6} {shared:6}")
    bad |= stack > 0 or spills > 0
sys.exit(bad)
PY
done
if [ "$bad" -ne 0 ] && [ "${1:-}" = --check ]; then
    echo "a kernel spills or uses local memory"
    exit 1
fi
