//! The border between C and Rust: no panic crosses it, and every fault leaves a message for its thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::fault::{Fault, Result};
use super::sys;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of an export. A fault becomes its status and this thread's message; so does a panic, as
/// `WARPMAIL_INTERNAL`.
#[inline]
pub(super) fn enter(body: impl FnOnce() -> Result<i32>) -> i32 {
    // What a panic leaves half done is guarded by locks whose holders check what they find; memory stays sound.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(fault)) => report(fault),
        Err(panic) => caught(panic),
    }
}

#[cold]
fn report(fault: Fault) -> i32 {
    let text = CString::new(fault.text).unwrap_or_else(|e| {
        // A name with a zero byte inside: show the rest.
        let bytes = e.into_vec().into_iter().filter(|b| *b != 0).collect::<Vec<u8>>();
        CString::new(bytes).unwrap_or_default()
    });
    // A thread that is ending has no message any more; the status stands.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
    fault.status
}

#[cold]
fn caught(panic: Box<dyn Any + Send>) -> i32 {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no message");
    report(Fault::new(
        sys::WARPMAIL_INTERNAL,
        format!("a fault inside warpmail, which kept it from your program: {said}; please report it"),
    ))
}

/// This thread's message, empty before the first. Valid until the thread's next fault.
pub(super) fn last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn message() -> String {
        // SAFETY: a C string of this thread, read before its next fault.
        unsafe { CStr::from_ptr(last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn panics_end_at_the_border() {
        assert_eq!(enter(|| panic!("planted {}", 7)), sys::WARPMAIL_INTERNAL);
        assert!(message().contains("planted 7"), "{}", message());
        assert_eq!(enter(|| std::panic::panic_any(7u8)), sys::WARPMAIL_INTERNAL);
        assert!(message().contains("no message"), "{}", message());
    }

    #[test]
    fn messages_belong_to_threads_and_keep_no_zero_bytes() {
        assert_eq!(enter(|| Err(Fault::argument("a\0b"))), crate::abi::WM_BAD_ARGUMENT);
        assert_eq!(message(), "ab");
        assert_eq!(std::thread::spawn(message).join().ok(), Some(String::new()));
    }
}
