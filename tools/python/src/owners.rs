//! Capsules that others made, on their way back. A drop only pushes to a lock-free queue, because it happens on any thread and
//! inside the library's collector; `release` calls the deleters later, with the interpreter's lock, which they may need.

use crossbeam::queue::SegQueue;
use pyo3::Python;

use crate::dlpack::{Legacy, Versioned};

enum Raw {
    Legacy(*mut Legacy),
    Versioned(*mut Versioned),
}

// SAFETY: DLPack lets any thread call a deleter; nothing else is done with the pointer after the import.
unsafe impl Send for Raw {}

/// A consumed capsule's struct, to be given back once.
pub(crate) struct Owner(Option<Raw>);

static RETURNED: SegQueue<Raw> = SegQueue::new();

impl Owner {
    pub(crate) fn legacy(managed: *mut Legacy) -> Self {
        Owner(Some(Raw::Legacy(managed)))
    }

    pub(crate) fn versioned(managed: *mut Versioned) -> Self {
        Owner(Some(Raw::Versioned(managed)))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(raw) = self.0.take() {
            RETURNED.push(raw);
        }
    }
}

/// Gives back what is to be given back now. Nobody may hold a lock of the library's here: a deleter may run any Python.
pub(crate) fn release(_py: Python<'_>) {
    for _ in 0..RETURNED.len() {
        match RETURNED.pop() {
            // SAFETY: imported and not given back before; a deleter may be missing.
            Some(Raw::Legacy(m)) => unsafe { (*m).deleter.map_or((), |delete| delete(m)) },
            // SAFETY: as above.
            Some(Raw::Versioned(m)) => unsafe { (*m).deleter.map_or((), |delete| delete(m)) },
            None => break,
        }
    }
}
