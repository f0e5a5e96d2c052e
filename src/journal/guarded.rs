//! A sink of the caller's whose panics are errors: the journal then fails as with any other, and everybody is told.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::{Batch, Position, Sink};
use crate::error::{Error, Result};

pub(super) struct Guarded(pub(super) Box<dyn Sink>);

fn guard<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    // A sink that panicked is not called again but to be dropped: the journal ends with this error.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::Failed(format!("the journal's sink panicked: {}", text.unwrap_or("without a text"))))
    })
}

impl Sink for Guarded {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>> {
        guard(|| self.0.append(batch))
    }

    fn wants_checksums(&self) -> bool {
        guard(|| Ok(self.0.wants_checksums())).unwrap_or(true)
    }

    fn tick(&mut self) -> Result<u64> {
        guard(|| self.0.tick())
    }

    fn commit(&mut self) -> Result<Position> {
        guard(|| self.0.commit())
    }

    fn durable(&self) -> u64 {
        guard(|| Ok(self.0.durable())).unwrap_or(0)
    }

    fn due_in(&self) -> Option<Duration> {
        guard(|| Ok(self.0.due_in())).unwrap_or(None)
    }

    fn finish(self: Box<Self>) -> Result<u64> {
        guard(|| self.0.finish())
    }
}
