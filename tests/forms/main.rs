//! Every form of the device API against every other, with random records, by one thread, a warp and a block: on a GPU, and on
//! the CPU, where a thread runs all lanes of a block in turns (csrc/protocol/lanes_host.hpp). Each scenario runs in a child process that is killed if it hangs.

use std::process::ExitCode;
use std::time::Duration;

use warpmail::{Device, abi};
use warpmail_testkit::forms::*;
use warpmail_testkit::harness::Scenario;

type Outcome = Result<(), String>;

const STRIDES: [u32; 7] = [64, 128, 256, 320, 512, 1024, 4096];
/// Starts from which the indices, or their low halves, wrap within a few records.
const STARTS: [u64; 4] = [0, u32::MAX as u64 - 2, u64::MAX - 2, 1 << 63];
const SLOTS: [u32; 5] = [1, 2, 8, 64, 256];
const LARGEST: usize = 4096 * 256;

fn one_of<T: Copy>(random: &mut fastrand::Rng, values: &[T]) -> T {
    values[random.usize(..values.len())]
}

/// Forms that `lanes` can take for this mailbox, and orders.
fn any_side(random: &mut fastrand::Rng, ends: bool) -> Side {
    let lanes = one_of(random, &[LANES_ONE, LANES_WARP, LANES_WARP, LANES_BLOCK]);
    let forms = if ends && lanes == LANES_WARP { FORM_END_AHEAD + 1 } else { FORM_BATCH + 1 };
    let (form, order) = (random.u64(..forms), random.u64(..2));
    Side { form, lanes, order, ..Side::default() }
}

fn any_trial(random: &mut fastrand::Rng, device: &Device) -> Trial {
    let ends = random.bool();
    let (stride, scope) = if ends {
        (abi::WM_STRIDE_DEFAULT, abi::WM_SCOPE_GPU)
    } else {
        (one_of(random, &STRIDES), one_of(random, &[abi::WM_SCOPE_GPU, abi::WM_SCOPE_SYS]))
    };
    let (mut push, mut pop) = (any_side(random, ends), any_side(random, ends));
    pop.order = push.order; // one order is both sides' agreement
    let fence_is_known = push.lanes == LANES_WARP || (device.info().ordinal.is_none() && push.lanes == LANES_ONE);
    if push.order == ORDER_ORDERED && fence_is_known && random.bool() {
        push.order = ORDER_FENCED;
    }
    // Lane by lane on the CPU, a record takes far longer, the more so the larger the block.
    let (records, threads) = match device.info().ordinal {
        None if push.lanes != LANES_ONE || pop.lanes != LANES_ONE => (100, [32, 64, 64, 128]),
        _ => (700, [32, 64, 128, 256]),
    };
    Trial {
        stride,
        slots: one_of(random, &SLOTS),
        scope,
        start: one_of(random, &STARTS),
        seed: random.u64(..),
        records,
        threads: one_of(random, &threads),
        push,
        pop,
    }
}

fn records_cross_in_every_form(device: &Device) -> Outcome {
    let forms = Forms::new(device, LARGEST)?;
    let mut random = fastrand::Rng::with_seed(std::env::var("WARPMAIL_SEED").map_or(1, |s| s.parse().unwrap_or(1)));
    for i in 0..400 {
        let trial = any_trial(&mut random, device);
        let reports = forms.run(&trial)?;
        if reports.iter().any(|r| r.fault != 0 || r.done != trial.records) {
            return Err(format!("trial {i}: {trial:?}: producer {:?}, consumer {:?}", reports[0], reports[1]));
        }
    }
    Ok(())
}

/// Many records through one pair of forms that a graph of modules would use, so that rare moments come up.
fn many_records_cross(device: &Device) -> Outcome {
    let forms = Forms::new(device, LARGEST)?;
    let on_gpu = device.info().ordinal.is_some();
    let pairs = [
        (FORM_TRY, FORM_TRY),
        (FORM_BATCH, FORM_BATCH),
        (FORM_END, FORM_END),
        (FORM_END_ALL, FORM_END_ALL),
        (FORM_END_WIDE, FORM_END_WIDE),
        (FORM_END_AHEAD, FORM_END_AHEAD),
    ];
    // Lane by lane a record takes far longer.
    let ways = if on_gpu { &[(LANES_WARP, 100_000)][..] } else { &[(LANES_ONE, 100_000), (LANES_WARP, 5_000)] };
    let all = pairs.into_iter().enumerate().flat_map(|pair| ways.iter().map(move |way| (pair, *way)));
    for ((i, (push, pop)), (lanes, records)) in all {
        let (push, pop) = if lanes == LANES_WARP { (push, pop) } else { (push % 4, pop % 4) };
        for order in [ORDER_ORDERED, ORDER_SELF_CONTAINED, ORDER_FENCED] {
            let seen = if order == ORDER_FENCED { ORDER_ORDERED } else { order };
            let trial = Trial {
                stride: abi::WM_STRIDE_DEFAULT,
                slots: 64,
                scope: abi::WM_SCOPE_GPU,
                start: 0,
                seed: 77 + i as u64,
                records,
                threads: 32,
                push: Side { form: push, lanes, order, ..Side::default() },
                pop: Side { form: pop, lanes, order: seen, ..Side::default() },
            };
            let reports = forms.run(&trial)?;
            if reports.iter().any(|r| r.fault != 0 || r.done != trial.records) {
                return Err(format!("{trial:?}: producer {:?}, consumer {:?}", reports[0], reports[1]));
            }
        }
    }
    Ok(())
}

fn misuse_is_told(device: &Device) -> Outcome {
    let forms = Forms::new(device, LARGEST)?;
    for lanes in [LANES_ONE, LANES_WARP, LANES_BLOCK] {
        for (call, [found, expected]) in forms.misuse(&Trial::plain(lanes, 1))?.into_iter().enumerate() {
            if found != expected {
                return Err(format!("lanes {lanes}, call {call}: status {found}, not {expected}"));
            }
        }
        // Those that were refused for what they were given, at each end.
        let refused = forms.refused()?.map(|r| [r.all, r.length, r.argument, r.header, r.index]);
        if refused != [[2, 1, 1, 0, 0], [1, 0, 1, 0, 0]] {
            return Err(format!("lanes {lanes}: refused {refused:?}"));
        }
    }
    Ok(())
}

fn damaged_headers_are_told(device: &Device) -> Outcome {
    type Damage = fn(&mut abi::wm_mailbox_header);
    // Whether it is counted as a header that is another's, and as indices that cannot be: in a header of ours alone.
    let damages: [(Damage, i32, [u64; 2]); 8] = [
        (|_| (), abi::WM_OK as i32, [0, 0]),
        (|h| h.magic ^= 1, abi::WM_BAD_MAGIC, [0, 0]),
        (|h| h.version += 1, abi::WM_BAD_VERSION, [0, 0]),
        (|h| h.record_stride = 512, abi::WM_BAD_STRIDE, [1, 0]),
        (|h| h.slots_log2 = 60, abi::WM_BAD_STRIDE, [1, 0]),
        (|h| h.consumer_id = 9, abi::WM_BAD_ARGUMENT, [1, 0]),
        (|h| h.write_idx = h.read_idx.wrapping_sub(1), abi::WM_BAD_INDEX, [0, 1]),
        (|h| h.read_idx = h.write_idx + 1000, abi::WM_BAD_INDEX, [0, 1]),
    ];
    let forms = Forms::new(device, LARGEST)?;
    for (i, (damage, expected, counted)) in damages.into_iter().enumerate() {
        let found = forms.attach_damaged(&Trial::plain(LANES_ONE, 1), damage)?;
        if found != expected {
            return Err(format!("damage {i}: status {found}, not {expected}"));
        }
        let [producer, consumer] = forms.refused()?;
        if [consumer.header, consumer.index] != counted || producer.header != counted[0] {
            return Err(format!("damage {i}: refused {producer:?} and {consumer:?}"));
        }
    }
    // Who pushes all the same is told at each push, not led to overwrite what nobody has taken.
    match forms.refused()? {
        [producer, _] if producer.index > 1 => Ok(()),
        refused => Err(format!("a torn ring was pushed into: {refused:?}")),
    }
}

/// What the CPU's way of running lanes says of lanes that are not together is said.
fn lanes_that_part_are_found(_device: &Device) -> Outcome {
    for which in 0..MISTAKES {
        if mistake_is_found(which) != (which + 1 < MISTAKES) {
            return Err(format!("mistake {which}: not found, or found where there is none"));
        }
    }
    Ok(())
}

const SCENARIOS: &[(&str, Scenario)] = &[
    ("lanes_that_part_are_found", lanes_that_part_are_found),
    ("records_cross_in_every_form", records_cross_in_every_form),
    ("many_records_cross", many_records_cross),
    ("misuse_is_told", misuse_is_told),
    ("damaged_headers_are_told", damaged_headers_are_told),
];

fn main() -> ExitCode {
    warpmail_testkit::harness::main_without_arbiter(SCENARIOS, Duration::from_secs(600))
}
