//! Bounds as moments.

use std::time::{Duration, Instant};

/// When a wait of at most `bound` that begins now ends. A bound too long for the clock is a century.
pub(crate) fn deadline(bound: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(bound.min(CENTURY)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bound_has_an_end() {
        for bound in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
            assert!(deadline(bound) + Duration::from_secs(600) >= Instant::now());
        }
        assert!(deadline(Duration::MAX) > Instant::now() + Duration::from_secs(3600));
    }
}
