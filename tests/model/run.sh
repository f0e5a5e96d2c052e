#!/usr/bin/env bash
# Checks the models of the parking protocol (park.pml) and of grants (credit.pml) with spin: every interleaving, with stores that
# arrive late; and that each planted mistake is found. Without spin (Debian: apt-get install spin) they are waived.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if ! command -v spin >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get install -y -qq spin >/dev/null 2>&1 || true
    fi
fi
if ! command -v spin >/dev/null; then
    echo "waived: the models of parking and of credit (spin is not installed: apt-get install spin)"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A model with macros that say which variant: `sound`, which must have no fault, or `planted`, whose mistake must be found.
check() {
    local kind=$1 model=$2 flags=() states errors
    shift 2
    for macro in "$@"; do flags+=("-D$macro"); done
    cd "$(mktemp -d -p "$scratch")"
    spin "${flags[@]}" -a "$root/tests/model/$model" >log 2>&1 || { cat log >&2; return 1; }
    cc -O2 -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=4000 -w -o pan pan.c
    timeout 900 ./pan -m2000000 >log 2>&1 || { cat log >&2; return 1; }
    if grep -q 'max search depth too small\|memory limit\|out of memory' log; then cat log >&2; return 1; fi
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' log | head -1)
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' log)
    case $kind:$errors in
    sound:0) printf '%-10s %-52s %12s states\n' "$model" "$*" "$states" ;;
    planted:[1-9]*) printf '%-10s %-52s        found\n' "$model" "$*" ;;
    planted:*)
        echo "$model $*: the planted mistake was not found"
        return 1
        ;;
    *)
        cat log
        echo "$model $*: it has a fault (above); to see the way there: spin -a with these macros, ./pan, spin -t -p"
        return 1
        ;;
    esac
    echo "$kind $model" >>"$scratch/checked"
}
export -f check
export root scratch

xargs -P "$(nproc)" -L 1 bash -euc 'check "$@"' check <<'END'
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 PUSHES=3 RESIDENCY
sound park.pml DEVICE_ENDS=0 HOST_ENDS=1 PUSHES=3 RESIDENCY
sound park.pml DEVICE_ENDS=2 HOST_ENDS=0 RESIDENCY
sound park.pml DEVICE_ENDS=1 HOST_ENDS=1 PUSHES=2
sound park.pml DEVICE_ENDS=1 HOST_ENDS=1 RESIDENCY
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 PUSHES=2 PACER=1
sound park.pml DEVICE_ENDS=0 HOST_ENDS=1 PUSHES=2 PACER=1
sound park.pml DEVICE_ENDS=1 HOST_ENDS=1 STOPPING
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 STOPPING RESIDENCY PACER=1
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 PUSHES=2 CLOSING=2
sound park.pml DEVICE_ENDS=0 HOST_ENDS=1 PUSHES=2 CLOSING=2
sound park.pml DEVICE_ENDS=1 HOST_ENDS=1 CLOSING=1
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 PUSHES=2 EARLY_RING
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 EARLY_RING RESIDENCY
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 EARLY_RING STOPPING
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 EARLY_RING CLOSING=1
sound park.pml DEVICE_ENDS=1 HOST_ENDS=0 CLOSING=1 RESIDENCY PACER=1
sound park.pml DEVICE_ENDS=0 HOST_ENDS=1 CLOSING=1 STOPPING
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_NO_SECOND_LOOK
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_LOOK_THEN_MARK
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_LOOK_BEFORE_PUSH
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_LOAD_EARLY
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_NO_RELEASE
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_NO_CREDIT_CHECK
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PLANT_CLEAR_LATE
planted park.pml DEVICE_ENDS=0 HOST_ENDS=1 PLANT_NO_HOST_FENCE
planted park.pml DEVICE_ENDS=0 HOST_ENDS=1 PLANT_NO_ARBITER_FENCE
planted park.pml DEVICE_ENDS=0 HOST_ENDS=1 PLANT_HOST_ANNOUNCED_LATE
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 RESIDENCY PLANT_NO_WANTED_FENCE
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 RESIDENCY PLANT_NO_CREDITS_FENCE
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 RESIDENCY PLANT_NO_WANTED
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 STOPPING PLANT_NO_DRAIN
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 PACER=1 PLANT_PUBLISH_LATE
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 CLOSING=1 PLANT_CLOSED_UNTOLD
planted park.pml DEVICE_ENDS=1 HOST_ENDS=0 CLOSING=1 PLANT_DUE_BEFORE_CLEAR
planted park.pml DEVICE_ENDS=0 HOST_ENDS=1 PUSHES=2 CLOSING=2 PLANT_DUE_READ_TWICE
sound credit.pml SLOTS=1
sound credit.pml SLOTS=2
sound credit.pml SLOTS=2 STEPS=4
sound credit.pml SLOTS=1 AHEAD
sound credit.pml SLOTS=2 AHEAD
sound credit.pml SLOTS=1 BEGINS=1
sound credit.pml SLOTS=2 BEGINS=1
sound credit.pml SLOTS=1 STEPS=2 BEGINS=1 AHEAD
planted credit.pml SLOTS=1 PLANT_ASK_HEADER
planted credit.pml SLOTS=1 PLANT_ENDS_UNTOLD
planted credit.pml SLOTS=1 PLANT_NO_FENCE_BEFORE_ENDED
planted credit.pml SLOTS=1 PLANT_TELL_BEFORE_READING
planted credit.pml SLOTS=1 PLANT_WRITTEN_BEFORE_ENDED
planted credit.pml SLOTS=1 PLANT_SETTLED_TOO_SOON
planted credit.pml SLOTS=1 BEGINS=1 PLANT_BEGIN_SETTLED
planted credit.pml SLOTS=1 BEGINS=1 PLANT_GO_BACK
END
for model in park.pml credit.pml; do
    echo "$model: $(grep -c "sound $model" "$scratch/checked") variants checked in every interleaving," \
        "$(grep -c "planted $model" "$scratch/checked") planted mistakes found"
done
