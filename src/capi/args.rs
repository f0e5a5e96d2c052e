//! Checks of what C passed: pointers, strings, bounds, and structs that know their own size.

use std::ffi::{CStr, CString, c_char, c_void};
use std::time::Duration;

use super::fault::{Fault, OK, Result};
use super::sys;
use crate::abi;

/// Where a result goes.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is null, or can be written for the time of the call.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self> {
        usable(pointer, name)?;
        Ok(Out(pointer))
    }

    pub(super) fn set(&self, value: T) {
        // SAFETY: checked for null and alignment in `new`, whose caller says that it can be written.
        unsafe { self.0.write(value) };
    }
}

fn usable<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(Fault::argument(format!("{name} is null")));
    }
    if !pointer.is_aligned() {
        return Err(Fault::argument(format!("{name} is not aligned to {} bytes", align_of::<T>())));
    }
    Ok(())
}

/// Bytes to read. Null with a length of 0 is none.
///
/// # Safety
/// `from` is null, or has `len` bytes that nobody writes during the call.
#[inline]
pub(super) unsafe fn bytes<'a>(from: *const c_void, len: usize, name: &str) -> Result<&'a [u8]> {
    check_bytes(from, len, name)?;
    // SAFETY: not null when there is a length, and not longer than an object can be; the caller says the rest.
    Ok(if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(from.cast(), len) } })
}

/// Bytes to write. Null with a length of 0 is none.
///
/// # Safety
/// `into` is null, or has `len` bytes that nobody else uses during the call. They are written before they are read.
#[inline]
pub(super) unsafe fn bytes_mut<'a>(into: *mut c_void, len: usize, name: &str) -> Result<&'a mut [u8]> {
    check_bytes(into, len, name)?;
    // SAFETY: as in `bytes`; a byte has no invalid values.
    Ok(if len == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(into.cast(), len) } })
}

#[inline]
fn check_bytes(at: *const c_void, len: usize, name: &str) -> Result<()> {
    if (at.is_null() && len != 0) || len > isize::MAX as usize {
        return Err(Fault::argument(format!("{name}: {len} bytes at {at:p} cannot be")));
    }
    Ok(())
}

/// A copy that outlives the call, or the reason why there is no memory for it.
pub(super) fn copy(bytes: &[u8], name: &str) -> Result<Vec<u8>> {
    let mut copy = room(bytes.len(), name)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// `len` zero bytes.
pub(super) fn zeroes(len: usize, name: &str) -> Result<Vec<u8>> {
    let mut zeroes = room(len, name)?;
    zeroes.resize(len, 0);
    Ok(zeroes)
}

fn room(len: usize, name: &str) -> Result<Vec<u8>> {
    let mut room = Vec::new();
    let none = |e| Fault::new(sys::WARPMAIL_UNAVAILABLE, format!("no memory for {name}, {len} bytes: {e}"));
    room.try_reserve_exact(len).map_err(none)?;
    Ok(room)
}

/// # Safety
/// `text` is null or a C string that nobody writes during the call.
pub(super) unsafe fn string<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    usable(text, name)?;
    // SAFETY: not null; the caller says that it is a C string.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Fault::argument(format!("{name} is not UTF-8")))
}

/// Gives a text to C: see `warpmail_probe_json` in the header.
///
/// # Safety
/// `into` is null or has `size` bytes; `needed` is null or can be written.
pub(super) unsafe fn give_text(text: &str, into: *mut c_char, size: usize, needed: *mut usize) -> Result<i32> {
    let text = CString::new(text.replace('\0', "")).unwrap_or_default();
    let bytes = text.as_bytes_with_nul();
    if !needed.is_null() {
        // SAFETY: the caller's word.
        unsafe { Out::new(needed, "needed") }?.set(bytes.len());
    }
    if bytes.len() > size {
        let text = format!("the text has {} bytes with its zero and the buffer {size}", bytes.len());
        return Err(Fault::new(abi::WM_TOO_SMALL, text));
    }
    usable(into, "the buffer")?;
    // SAFETY: `into` is not null and has `size` bytes, which is enough.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), into, bytes.len()) };
    Ok(OK)
}

/// The bound of a wait.
#[inline]
pub(super) fn bound(ns: u64) -> Result<Duration> {
    if ns > sys::WARPMAIL_BOUND_MAX_NS {
        return Err(Fault::argument(format!("a bound of {ns} ns: at most WARPMAIL_BOUND_MAX_NS, a day")));
    }
    Ok(Duration::from_nanos(ns))
}

/// A struct of options whose first member is its size.
///
/// # Safety
/// `repr(C)`, first member `u32 struct_size`, and any bytes are a value of it.
pub(super) unsafe trait Options: Copy {
    const NAME: &'static str;
    /// Sizes that it had in older versions of the header.
    const OLDER: &'static [usize] = &[];
    /// Values of the members that an older struct does not have.
    fn defaults() -> Self;
}

/// Larger than any struct will be: a size beyond it was never set.
const SIZE_MAX: usize = 4096;

/// Reads options of this version, an older one, or a newer one that says nothing this library does not know.
///
/// # Safety
/// `from` is null, or points to as many bytes as its first member says.
pub(super) unsafe fn options<T: Options>(from: *const T) -> Result<T> {
    usable(from, T::NAME)?;
    let known = size_of::<T>();
    // SAFETY: not null, aligned, and the first member is the size.
    let size = unsafe { from.cast::<u32>().read() } as usize;
    let bad = |why: String| Fault::new(sys::WARPMAIL_BAD_STRUCT, format!("{}: struct_size {size}: {why}", T::NAME));
    if size > SIZE_MAX || (size < known && !T::OLDER.contains(&size)) {
        let init = T::NAME.to_uppercase();
        return Err(bad(format!("this version has {known} bytes; start from {init}_INIT")));
    }
    for at in known..size {
        // SAFETY: the caller says that there are `size` bytes.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            return Err(bad(format!(
                "byte {at} is not zero, and this library (API version {}) knows only the first {known}: it is older than \
                 the program; use a newer library, or leave the new members zero",
                sys::WARPMAIL_API_VERSION
            )));
        }
    }
    let mut value = T::defaults();
    // SAFETY: both have the bytes; any bytes are a value.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size.min(known));
    }
    Ok(value)
}

/// Gives a struct of statistics to C: as much of it as the caller's version knows.
///
/// # Safety
/// `repr(C)` with `u32 struct_size` first; `into` is null, or points to as many bytes as its first member says.
pub(super) unsafe fn give_struct<T: Copy>(value: T, into: *mut T, name: &str) -> Result<i32> {
    usable(into, name)?;
    // SAFETY: not null, aligned, and the first member is the size.
    let size = unsafe { into.cast::<u32>().read() } as usize;
    if !(8..=SIZE_MAX).contains(&size) {
        let text = format!("{name}: struct_size {size}: set it to the size of the struct first");
        return Err(Fault::new(sys::WARPMAIL_BAD_STRUCT, text));
    }
    let filled = size.min(size_of::<T>());
    // SAFETY: both have `filled` bytes; the size is written last, and lies within them.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), into.cast::<u8>(), filled);
        into.cast::<u32>().write(filled as u32);
    }
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct in its second version: the first ended behind `first`.
    #[repr(C, align(8))]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Fake {
        struct_size: u32,
        first: u32,
        second: u64,
    }

    // SAFETY: `repr(C)`, integers only, the size first.
    unsafe impl Options for Fake {
        const NAME: &'static str = "fake";
        const OLDER: &'static [usize] = &[8];
        fn defaults() -> Self {
            Fake { struct_size: 0, first: 1, second: 2 }
        }
    }

    fn read(words: &[u64; 4]) -> Result<Fake> {
        // SAFETY: 32 bytes, and no test says more.
        unsafe { options(words.as_ptr().cast::<Fake>()) }
    }

    #[test]
    fn older_structs_take_defaults_and_newer_ones_must_say_nothing_new() {
        let first = |size: u64| 9 << 32 | size;
        let fake = |second| Fake { struct_size: 16, first: 9, second };
        assert_eq!(read(&[first(16), 7, 0, 0]).ok(), Some(fake(7)));
        assert_eq!(read(&[first(8), 7, 0, 0]).ok(), Some(Fake { struct_size: 8, ..fake(2) }));
        assert_eq!(read(&[first(32), 7, 0, 0]).ok(), Some(Fake { struct_size: 32, ..fake(7) }));
        for words in [[first(0), 7, 0, 0], [first(12), 7, 0, 0], [first(9999), 7, 0, 0], [first(32), 7, 0, 1]] {
            let fault = read(&words).expect_err("refused");
            assert_eq!(fault.status, sys::WARPMAIL_BAD_STRUCT, "{}", fault.text);
        }
        assert!(read(&[first(32), 7, 0, 1 << 56]).expect_err("refused").text.contains("byte 31"));
    }

    #[test]
    fn an_older_program_gets_what_it_knows() {
        let mut words = [8u64, 0xAA, 0xAA];
        let value = Fake { struct_size: 0, first: 5, second: 6 };
        // SAFETY: 24 bytes; the sizes given are at most that.
        assert_eq!(unsafe { give_struct(value, words.as_mut_ptr().cast(), "fake") }.ok(), Some(OK));
        assert_eq!(words, [5 << 32 | 8, 0xAA, 0xAA]);
        words = [24, 0xAA, 0xAA];
        // SAFETY: as above.
        assert_eq!(unsafe { give_struct(value, words.as_mut_ptr().cast(), "fake") }.ok(), Some(OK));
        assert_eq!(words, [5 << 32 | 16, 6, 0xAA]);
    }
}
