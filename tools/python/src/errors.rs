//! One exception for each reason, all of them `warpmail.Error`.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

pyo3::create_exception!(warpmail, Error, PyException, "Whatever warpmail refuses or fails at.");

macro_rules! reasons {
    ($($name:ident: $doc:literal,)*) => {
        $(pyo3::create_exception!(warpmail, $name, Error, $doc);)*
        /// Puts the exceptions into the module.
        pub(crate) fn add(m: &Bound<'_, PyModule>) -> PyResult<()> {
            m.add("Error", m.py().get_type::<Error>())?;
            $(m.add(stringify!($name), m.py().get_type::<$name>())?;)*
            Ok(())
        }
    };
}

reasons! {
    Full: "The mailbox has no free slot now. Nothing was taken.",
    Empty: "The mailbox has no record now.",
    Timeout: "A bounded wait ended without what it waited for. Nothing was lost.",
    PayloadTooLong: "A payload is longer than a slot carries.",
    BadMailbox: "A mailbox, or a record in it, is not what it should be.",
    Refused: "A module graph, an option or a tensor breaks a rule.",
    Unavailable: "This machine, or this build, cannot do it.",
    DriverError: "A driver call failed.",
    Failed: "The runtime has failed; it stays so, and every waiter is told.",
    Stuck: "The arbiter did not leave in time, because a handler did not return.",
    JournalError: "A log or a checkpoint could not be read or written.",
    PoolFull: "A pool has no room for more. Nothing was taken.",
    StaleLease: "The right to use a tensor's memory has ended. The memory was not touched.",
    StateError: "A call that does not fit the state of what it is called on.",
}

/// The exception for an error of the library.
pub(crate) fn raise(e: warpmail::Error) -> PyErr {
    use warpmail::Error as E;
    let text = e.to_string();
    match e {
        E::Full { .. } => Full::new_err(text),
        E::Timeout { .. } => Timeout::new_err(text),
        E::PayloadTooLong { .. } => PayloadTooLong::new_err(text),
        E::BufferTooSmall { .. } | E::BadRecord { .. } | E::BadMailbox { .. } | E::NotATensor { .. } => {
            BadMailbox::new_err(text)
        }
        E::Refused { .. } => Refused::new_err(text),
        E::Unavailable { .. } => Unavailable::new_err(text),
        E::Driver { .. } => DriverError::new_err(text),
        E::Failed(_) => Failed::new_err(text),
        E::Stuck { .. } => Stuck::new_err(text),
        E::Io { .. } | E::NotDurable { .. } | E::Damaged { .. } | E::Foreign { .. } | E::Locked { .. } => {
            JournalError::new_err(text)
        }
        E::PoolFull { .. } => PoolFull::new_err(text),
        E::StaleLease { .. } | E::PoisonRead { .. } | E::WrittenAfterRelease { .. } => StaleLease::new_err(text),
        E::State(_) => StateError::new_err(text),
        _ => Error::new_err(text),
    }
}
