//! What an export reports instead of success: a status for the program and a message for its reader.

use super::sys;
use crate::abi;
use crate::error::Error;

pub(super) const OK: i32 = abi::WM_OK as i32;
pub(super) const EMPTY: i32 = abi::WM_EMPTY as i32;
pub(super) const FULL: i32 = abi::WM_FULL as i32;
pub(super) const TIMEOUT: i32 = abi::WM_TIMEOUT as i32;

/// A status that is not [`OK`], with its reason.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: i32,
    pub(super) text: String,
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    pub(super) fn new(status: i32, text: impl Into<String>) -> Self {
        Fault { status, text: text.into() }
    }

    pub(super) fn argument(text: impl Into<String>) -> Self {
        Self::new(abi::WM_BAD_ARGUMENT, text)
    }
}

impl From<Error> for Fault {
    #[cold]
    fn from(e: Error) -> Self {
        let status = match &e {
            Error::Full { .. } => FULL,
            Error::Timeout { .. } => TIMEOUT,
            Error::PayloadTooLong { .. } | Error::BadRecord { .. } => abi::WM_BAD_LENGTH,
            Error::BufferTooSmall { .. } => abi::WM_TOO_SMALL,
            Error::BadMailbox { .. } => sys::WARPMAIL_BAD_MAILBOX,
            Error::Refused { .. } => sys::WARPMAIL_REFUSED,
            Error::Unavailable { .. } => sys::WARPMAIL_UNAVAILABLE,
            Error::Driver { .. } => sys::WARPMAIL_DRIVER,
            Error::Failed(_) => sys::WARPMAIL_FAILED,
            Error::Stuck { .. } => sys::WARPMAIL_STUCK,
            Error::State(_) => sys::WARPMAIL_BAD_STATE,
            Error::PoolFull { .. } => sys::WARPMAIL_POOL_FULL,
            Error::StaleLease { .. } => abi::WM_STALE_LEASE,
            Error::NotATensor { .. } => abi::WM_BAD_TYPE,
            Error::WrittenAfterRelease { .. } | Error::PoisonRead { .. } => abi::WM_POISONED,
            Error::Io { .. }
            | Error::NotDurable { .. }
            | Error::Damaged { .. }
            | Error::Foreign { .. }
            | Error::Locked { .. } => sys::WARPMAIL_JOURNAL,
        };
        Fault::new(status, e.to_string())
    }
}
