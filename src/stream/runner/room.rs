//! How much stands in a stream ahead of need: what its queue has room for.

use std::time::Duration;

/// What may stand in a stream's queue behind a closed door, in kernels and the like. A queue of the driver's has an end, about a
/// thousand of them, and whoever enqueues more waits until a door opens, with all modules that this thread serves. So longer
/// bodies stand fewer ahead, and one that is longer than this by itself does not stand behind a door at all.
pub(crate) const QUEUE: usize = 512;
/// A call that took longer, and ended when a launch had begun, may have waited for room in a queue.
pub(super) const FULL: Duration = Duration::from_millis(2);
/// How often that happens before a module has fewer launches ahead: once may be chance.
const FULL_OFTEN: u32 = 2;

/// Launches that may stand ahead of need, of those that were asked for.
pub(super) fn ahead_of(asked: u64, entries: Option<usize>) -> u64 {
    entries.map_or(asked, |n| asked.min((QUEUE / n.max(1)) as u64)).max(1)
}

/// What becomes of a lane whose queue was full.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// It may have been chance.
    Wait,
    /// So many fit.
    Ahead(u64),
    /// Not even one does: it waits for its door here.
    LetIn,
}

/// A launch had to wait for room with `standing` others in front of it, for the `times`th time.
pub(super) fn when_full(standing: u64, ahead: u64, entries: Option<usize>, times: u32) -> Full {
    // A few kernels fill no queue: then the thread was kept from its core.
    let few = entries.is_some_and(|n| n as u64 * (standing + 1) < QUEUE as u64 / 8);
    match standing {
        _ if few || times < FULL_OFTEN => Full::Wait,
        0 => Full::LetIn,
        _ => Full::Ahead(standing.min(ahead)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bodies_stand_fewer_ahead() {
        assert_eq!(ahead_of(4, None), 4);
        assert_eq!(ahead_of(4, Some(4)), 4);
        assert_eq!(ahead_of(4, Some(QUEUE / 2)), 2);
        assert_eq!(ahead_of(12, Some(QUEUE)), 1);
        assert_eq!(ahead_of(12, Some(10 * QUEUE)), 1);
    }

    #[test]
    fn what_waited_for_room_stands_fewer_ahead() {
        assert_eq!(when_full(2, 4, None, 1), Full::Wait);
        assert_eq!(when_full(2, 4, None, 2), Full::Ahead(2));
        assert_eq!(when_full(0, 1, None, 2), Full::LetIn);
        assert_eq!(when_full(3, 4, Some(4), 9), Full::Wait); // a busy host
        assert_eq!(when_full(1, 2, Some(QUEUE / 2), 2), Full::Ahead(1));
    }
}
