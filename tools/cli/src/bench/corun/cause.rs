//! `park.chain.*`: what makes a chain of small kernels slower, if anything does. Two pieces of it, launched one by one and as a
//! captured graph, beside one thing at a time, over the same with nothing of warpmail's in the process: parts of what an
//! arbiter is, among them some that have nothing to do with warpmail.

use std::time::Duration;

use warpmail::{Device, SpinBudget};

use super::super::gpu::{Mapped, Stream, arg};
use super::super::{median, text};
use super::{BOUND, Loaded, Neighbours, State};
use crate::figures::Figures;

/// What stands beside the chain.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    /// Nothing: how much the halves of a pair differ by themselves.
    Absent,
    /// A runtime that is quiesced: its threads and its memory, and nothing in any stream.
    Quiesced,
    /// A parked arbiter, and how often the pacer lets its launches go.
    Parked(Duration),
    Hot,
    /// No runtime: a stream of the bench's own that waits for a word of pinned memory, as a parked arbiter's does where no records come; of the
    /// usual priority, or of the least or the most urgent one.
    Waiting(Option<bool>),
    /// The same in a stream that began with a copy, so that a copy engine's channel waits.
    CopyEngine,
    /// The same in a stream of its own, and another stream behind an event of that, as an arbiter's launches wait while records come.
    Event,
    /// No runtime: one warp that polls such a word.
    Resident,
}

const BESIDE: [(&str, Beside); 11] = [
    ("absent", Beside::Absent),
    ("quiesced", Beside::Quiesced),
    ("parked", Beside::Parked(Duration::from_millis(10))),
    ("parked_max_wait_1s", Beside::Parked(Duration::from_secs(1))),
    ("hot", Beside::Hot),
    ("waiting_stream", Beside::Waiting(None)),
    ("waiting_stream_least", Beside::Waiting(Some(false))),
    ("waiting_stream_urgent", Beside::Waiting(Some(true))),
    ("waiting_copy_engine", Beside::CopyEngine),
    ("waiting_event", Beside::Event),
    ("resident_warp", Beside::Resident),
];
const FORMS: [(&str, &str); 2] = [("", "decode"), (".graph", "decode_graph")];
/// Pieces of a measurement.
const PIECES: u32 = 2;
/// The longest that the bench's own warp stays.
const LONGEST_NS: u64 = 2_000_000_000;

/// The chain beside one thing, in one form.
pub(in super::super) struct Chain {
    id: String,
    /// Median of the pairs' ratios, and medians in milliseconds.
    slowdown: f64,
    beside_ms: f64,
    alone_ms: f64,
}

/// A word for which something of the bench's own waits on the device, set in any case.
struct Word(Mapped);

impl Drop for Word {
    fn drop(&mut self) {
        self.0.store(0, 1);
    }
}

/// Both forms of the chain, milliseconds of each.
fn chain(neighbours: &Neighbours<'_>) -> Result<[f64; 2], String> {
    let mut times = [0.0; 2];
    for ((_, form), time) in FORMS.iter().zip(&mut times) {
        neighbours.timed(form, 1)?;
        *time = neighbours.timed(form, PIECES)?;
    }
    Ok(times)
}

fn beside_runtime(
    device: &Device,
    neighbours: &Neighbours<'_>,
    idle_spin: Option<Duration>,
    max_wait: Duration,
    quiesced: bool,
) -> Result<[f64; 2], String> {
    let budget = SpinBudget { idle_spin, max_wait, ..SpinBudget::default() };
    let mut loaded = Loaded::start(device, &State { name: "", budget, rate: 0 }, neighbours.stream)?;
    let times = match quiesced {
        true => loaded.runtime.quiesce(BOUND, |_| chain(neighbours)).map_err(text)?,
        false => chain(neighbours),
    };
    loaded.stop()?;
    times
}

fn beside_word(
    neighbours: &Neighbours<'_>,
    stream: Stream,
    begin: impl FnOnce(u64) -> Result<(), String>,
) -> Result<[f64; 2], String> {
    let word = Word(Mapped::new(1)?);
    begin(word.0.device())?;
    let times = chain(neighbours);
    word.0.store(0, 1);
    neighbours.kernels.wait(stream)?; // before the word is freed
    times
}

fn beside(
    device: &Device,
    neighbours: &Neighbours<'_>,
    what: Beside,
    streams: &[Stream; 5],
) -> Result<[f64; 2], String> {
    let kernels = neighbours.kernels;
    let (moment, usual) = (Some(Duration::from_micros(1)), SpinBudget::default().max_wait);
    match what {
        Beside::Absent => chain(neighbours),
        Beside::Quiesced => beside_runtime(device, neighbours, moment, usual, true),
        Beside::Parked(max_wait) => beside_runtime(device, neighbours, moment, max_wait, false),
        Beside::Hot => beside_runtime(device, neighbours, None, usual, false),
        Beside::Waiting(urgent) => {
            let stream = streams[urgent.map_or(0, |urgent| 1 + usize::from(urgent))];
            beside_word(neighbours, stream, |word| kernels.wait_for_value(stream, word))
        }
        Beside::CopyEngine => beside_word(neighbours, streams[3], |word| kernels.wait_for_value(streams[3], word)),
        Beside::Event => beside_word(neighbours, streams[2], |word| {
            kernels.wait_for_value(streams[4], word)?;
            kernels.put_behind(streams[4], streams[2])
        }),
        Beside::Resident => beside_word(neighbours, streams[0], |mut word| {
            let (kernel, mut ns) = (kernels.get("corun_resident", 0)?, LONGEST_NS);
            kernels.launch(kernel, 1, 32, 0, streams[0], &mut [arg(&mut word), arg(&mut ns)])
        }),
    }
}

pub(super) fn measure(device: &Device, neighbours: &Neighbours<'_>, pairs: usize) -> Result<Vec<Chain>, String> {
    let kernels = neighbours.kernels;
    let urgent = || kernels.stream_of(true);
    let streams = [kernels.stream()?, kernels.stream_of(false)?, urgent()?, urgent()?, urgent()?];
    neighbours.first_copy(streams[3])?;
    let mut rows = Vec::new();
    for (name, what) in BESIDE {
        let mut times: [[Vec<f64>; 2]; 2] = Default::default(); // of each form: beside, alone
        for pair in 0..pairs {
            for is_beside in [pair % 2 == 0, pair % 2 != 0] {
                let what = if is_beside { what } else { Beside::Absent };
                for (form, ms) in beside(device, neighbours, what, &streams)?.into_iter().enumerate() {
                    times[form][usize::from(!is_beside)].push(ms);
                }
            }
        }
        for ((suffix, _), [beside, alone]) in FORMS.iter().zip(&mut times) {
            let mut ratios: Vec<f64> = beside.iter().zip(&*alone).map(|(b, a)| b / a).collect();
            rows.push(Chain {
                id: format!("park.chain.{name}{suffix}"),
                slowdown: median(&mut ratios),
                beside_ms: median(beside),
                alone_ms: median(alone),
            });
        }
    }
    Ok(rows)
}

/// Rows, and in words how much longer a kernel of the chain takes.
pub(in super::super) fn tell(figures: &mut Figures, chains: &[Chain]) {
    for c in chains {
        figures.add(&c.id, c.beside_ms, "ms", Some(c.alone_ms)).ratio = Some(c.slowdown);
        let kernels = f64::from(PIECES) * super::LAYERS as f64;
        println!(
            "{:<36} {:.2} µs a kernel alone, {:+.0} ns beside it",
            c.id,
            c.alone_ms * 1e3 / kernels,
            (c.slowdown - 1.0) * c.alone_ms * 1e6 / kernels
        );
    }
}
