//! The table of live handles. A handle that C holds is an id in the shape of a pointer, never an address: looking it up
//! says exactly whether it is alive, has been destroyed, or never was.
//!
//! Layout of an id, from the top: 8 bits mark (no valid address begins with them), 1 bit busy (never set in what C holds),
//! 4 bits kind, 31 bits generation, 20 bits row. A row's word holds the id while the handle is alive, the id with the busy
//! bit while a thread uses it, and the bare generation when the row is free. One compare-and-swap from id to busy id is the
//! check and the lock in one: whoever made it owns the row's object until it stores the id back.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::fault::{Fault, Result};
use super::handle::{Handle, Kind, Object};
use super::sys;

const MARK: u64 = 0x57;
const BUSY: u64 = 1 << 55;
const ROW_BITS: u32 = 20;
const GENERATIONS: u64 = 1 << 31;
/// Rows are made this many at a time, and never freed: a stale id may be looked up at any time.
const CHUNK: usize = 1024;

/// One row, alone on its lines: a sender and a receiver used by two threads must not share one.
#[repr(align(128))]
struct Row {
    word: AtomicU64,
    object: UnsafeCell<Option<Object>>,
}

// SAFETY: `object` is touched only by the thread whose compare-and-swap set the busy bit of `word`, or that took the free
// row from `FREE`; what it holds is `Send`.
unsafe impl Sync for Row {}

static CHUNKS: [OnceLock<Box<[Row]>>; (1 << ROW_BITS) / CHUNK] = [const { OnceLock::new() }; _];
static FREE: Mutex<Free> = Mutex::new(Free { rows: Vec::new(), made: 0 });

struct Free {
    rows: Vec<usize>,
    made: usize,
}

/// The right to use what a handle names, alone. Ends with its drop.
pub(super) struct Hold<H: Handle> {
    row: &'static Row,
    id: u64,
    value: NonNull<H::Value>,
}

impl<H: Handle> std::ops::Deref for Hold<H> {
    type Target = H::Value;
    fn deref(&self) -> &H::Value {
        // SAFETY: points into the row's object, which the busy bit keeps for this thread alone.
        unsafe { self.value.as_ref() }
    }
}

impl<H: Handle> std::ops::DerefMut for Hold<H> {
    fn deref_mut(&mut self) -> &mut H::Value {
        // SAFETY: as in `deref`.
        unsafe { self.value.as_mut() }
    }
}

impl<H: Handle> Drop for Hold<H> {
    fn drop(&mut self) {
        // Pairs with the acquire of the next `hold`.
        self.row.word.store(self.id, Ordering::Release);
    }
}

/// Puts an object into the table; its handle.
pub(super) fn insert<H: Handle>(object: Object) -> Result<*mut H> {
    let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let at = match free.rows.pop() {
        Some(at) => at,
        None if free.made < 1 << ROW_BITS => {
            free.made += 1;
            free.made - 1
        }
        None => return Err(Fault::new(sys::WARPMAIL_UNAVAILABLE, "too many handles are alive: destroy some")),
    };
    drop(free);
    let new_row = || Row { word: AtomicU64::new(0), object: UnsafeCell::new(None) };
    let chunk = CHUNKS[at / CHUNK].get_or_init(|| (0..CHUNK).map(|_| new_row()).collect());
    let row = &chunk[at % CHUNK];
    let generation = row.word.load(Ordering::Relaxed) + 1;
    let id = MARK << 56 | (H::KIND as u64) << 51 | generation << ROW_BITS | at as u64;
    // SAFETY: the row is free and `FREE` gave it to this thread alone; nobody knows the id yet.
    unsafe { *row.object.get() = Some(object) };
    row.word.store(id, Ordering::Release);
    Ok(id as usize as *mut H)
}

/// Takes the right to use what a handle names, or says at once why not.
#[inline]
pub(super) fn hold<H: Handle>(handle: *mut H) -> Result<Hold<H>> {
    let id = handle as usize as u64;
    let Some(row) = row_of(id).filter(|_| kind_bits(id) == H::KIND as u64 && id & BUSY == 0) else {
        return Err(diagnose::<H>(id));
    };
    if row.word.compare_exchange(id, id | BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return Err(diagnose::<H>(id));
    }
    // SAFETY: the busy bit is this thread's from here to the drop of the hold.
    match unsafe { (*row.object.get()).as_mut() }.and_then(H::value) {
        Some(value) => Ok(Hold { row, id, value: NonNull::from(value) }),
        None => {
            row.word.store(id, Ordering::Release);
            Err(Fault::new(sys::WARPMAIL_INTERNAL, "a handle names an object of another kind; please report it"))
        }
    }
}

/// A copy of what a handle of the shared kinds names. Others hold these only as long as a copy takes.
pub(super) fn share<H: Handle>(handle: *mut H) -> Result<H::Value>
where
    H::Value: Clone,
{
    Ok(hold_soon(handle)?.clone())
}

/// Takes an object out of the table: its handle is stale from now on.
pub(super) fn remove<H: Handle>(handle: *mut H) -> Result<Object> {
    let held = if H::SHARED { hold_soon(handle)? } else { hold(handle)? };
    let (row, at) = (held.row, (held.id & ((1 << ROW_BITS) - 1)) as usize);
    let generation = generation_of(held.id);
    std::mem::forget(held); // the word gets its new value here
    // SAFETY: the busy bit is still this thread's.
    let object = unsafe { (*row.object.get()).take() };
    row.word.store(generation, Ordering::Release);
    if generation + 1 < GENERATIONS {
        FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).rows.push(at);
    }
    object.ok_or_else(|| Fault::new(sys::WARPMAIL_INTERNAL, "a handle names nothing; please report it"))
}

/// `hold` for shared kinds: waits out another thread's copy. A second is far more than that takes.
fn hold_soon<H: Handle>(handle: *mut H) -> Result<Hold<H>> {
    let mut until = None;
    loop {
        match hold(handle) {
            Err(fault) if fault.status == sys::WARPMAIL_BUSY => {
                if *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(1)) <= Instant::now() {
                    return Err(fault);
                }
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

#[inline]
fn row_of(id: u64) -> Option<&'static Row> {
    let at = (id & ((1 << ROW_BITS) - 1)) as usize;
    if id >> 56 != MARK { None } else { CHUNKS[at / CHUNK].get().map(|chunk| &chunk[at % CHUNK]) }
}

fn kind_bits(id: u64) -> u64 {
    id >> 51 & 0xF
}

fn generation_of(id: u64) -> u64 {
    id >> ROW_BITS & (GENERATIONS - 1)
}

/// Why an id could not be held.
#[cold]
fn diagnose<H: Handle>(id: u64) -> Fault {
    let wanted = H::KIND.name();
    if id == 0 {
        return Fault::new(sys::WARPMAIL_BAD_HANDLE, format!("the {wanted} is null: was making it refused?"));
    }
    let foreign = || format!("{id:#x} is no {wanted}: no call of this library gave it out");
    let (Some(row), Some(kind)) = (row_of(id), Kind::from_bits(kind_bits(id))) else {
        return Fault::new(sys::WARPMAIL_BAD_HANDLE, foreign());
    };
    let now = row.word.load(Ordering::Relaxed);
    let alive = now & !BUSY == id;
    if kind != H::KIND && alive {
        let text = format!("the handle is a {}, where a {wanted} is needed", kind.name());
        return Fault::new(sys::WARPMAIL_BAD_HANDLE, text);
    }
    if alive {
        let text = format!("another thread is inside a call with this {wanted}: one thread at a time may use it");
        return Fault::new(sys::WARPMAIL_BUSY, text);
    }
    // A free row's word is the generation that it had last; a live one's generation is later than all that went before.
    let last = if now >> 56 == MARK { generation_of(now) - 1 } else { now };
    if (1..=last).contains(&generation_of(id)) {
        let text = format!("this {} has been destroyed; a handle ends with its destroy", kind.name());
        return Fault::new(sys::WARPMAIL_STALE_HANDLE, text);
    }
    Fault::new(sys::WARPMAIL_BAD_HANDLE, foreign())
}
