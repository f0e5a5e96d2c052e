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
cd "$scratch"

# Finds states and errors of a variant of $model, given by macros.
check() {
    local flags=()
    for macro in "$@"; do flags+=("-D$macro"); done
    rm -f pan*
    spin "${flags[@]}" -a "$root/tests/model/$model" >log 2>&1 || { cat log >&2; return 1; }
    cc -O2 -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=4000 -w -o pan pan.c
    timeout 900 ./pan -m2000000 >log 2>&1 || { cat log >&2; return 1; }
    if grep -q 'max search depth too small\|memory limit\|out of memory' log; then cat log >&2; return 1; fi
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' log | head -1)
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' log)
}

# A variant that must have no fault.
sound() {
    check "$@"
    printf '%-58s %12s states\n' "$*" "$states"
    if [ "$errors" != 0 ]; then
        cat log
        echo "the model has a fault (above); to see the way there: spin -a with these macros, ./pan, spin -t -p"
        exit 1
    fi
    checked=$((checked + 1))
}

# A variant with a mistake that must be found.
planted() {
    check "$@"
    if [ "$errors" = 0 ]; then
        echo "$*: the planted mistake was not found"
        exit 1
    fi
    printf '%-58s        found\n' "$*"
    found=$((found + 1))
}

model=park.pml checked=0 found=0
both="DEVICE_ENDS=1 HOST_ENDS=1" device="DEVICE_ENDS=1 HOST_ENDS=0" host="DEVICE_ENDS=0 HOST_ENDS=1"
sound $device PUSHES=3 RESIDENCY
sound $host PUSHES=3 RESIDENCY
sound DEVICE_ENDS=2 HOST_ENDS=0 RESIDENCY
sound $both PUSHES=2
sound $both RESIDENCY
sound $device PUSHES=2 PACER=1
sound $host PUSHES=2 PACER=1
sound $both STOPPING
sound $device STOPPING RESIDENCY PACER=1
sound $device PUSHES=2 CLOSING=2
sound $host PUSHES=2 CLOSING=2
sound $both CLOSING=1
sound $device PUSHES=2 EARLY_RING
sound $device EARLY_RING RESIDENCY
sound $device EARLY_RING STOPPING
sound $device EARLY_RING CLOSING=1
sound $device CLOSING=1 RESIDENCY PACER=1
sound $host CLOSING=1 STOPPING

planted $device PLANT_NO_SECOND_LOOK
planted $device PLANT_LOOK_THEN_MARK
planted $device PLANT_LOOK_BEFORE_PUSH
planted $device PLANT_LOAD_EARLY
planted $device PLANT_NO_RELEASE
planted $device PLANT_NO_CREDIT_CHECK
planted $device PLANT_CLEAR_LATE
planted $host PLANT_NO_HOST_FENCE
planted $host PLANT_NO_ARBITER_FENCE
planted $host PLANT_HOST_ANNOUNCED_LATE
planted $device RESIDENCY PLANT_NO_WANTED_FENCE
planted $device RESIDENCY PLANT_NO_CREDITS_FENCE
planted $device RESIDENCY PLANT_NO_WANTED
planted $device STOPPING PLANT_NO_DRAIN
planted $device PACER=1 PLANT_PUBLISH_LATE
planted $device CLOSING=1 PLANT_CLOSED_UNTOLD
planted $device CLOSING=1 PLANT_DUE_BEFORE_CLEAR
planted $host PUSHES=2 CLOSING=2 PLANT_DUE_READ_TWICE
report() { echo "$model: $checked variants checked in every interleaving, $found planted mistakes found"; }
report

model=credit.pml checked=0 found=0
sound SLOTS=1
sound SLOTS=2
sound SLOTS=2 STEPS=4
sound SLOTS=1 AHEAD
sound SLOTS=2 AHEAD
sound SLOTS=1 BEGINS=1
sound SLOTS=2 BEGINS=1
sound SLOTS=1 STEPS=2 BEGINS=1 AHEAD

planted SLOTS=1 PLANT_ASK_HEADER
planted SLOTS=1 PLANT_ENDS_UNTOLD
planted SLOTS=1 PLANT_NO_FENCE_BEFORE_ENDED
planted SLOTS=1 PLANT_TELL_BEFORE_READING
planted SLOTS=1 PLANT_WRITTEN_BEFORE_ENDED
planted SLOTS=1 PLANT_SETTLED_TOO_SOON
planted SLOTS=1 BEGINS=1 PLANT_BEGIN_SETTLED
planted SLOTS=1 BEGINS=1 PLANT_GO_BACK
report
