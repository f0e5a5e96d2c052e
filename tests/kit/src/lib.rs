//! Handlers and helpers that warpmail's own tests use.

pub mod echo;
pub mod filler;
pub mod forms;
pub mod harness;

include!(concat!(env!("OUT_DIR"), "/kit.rs"));

/// The test handlers: see `handlers/kit.hpp` for what each does and what its state words mean.
pub fn image() -> warpmail::HandlerImage {
    if std::env::var_os(harness::WARPS).is_some() { warps() } else { kit::image() }
}

unsafe extern "C" {
    fn kit_warps(args: *const warpmail::abi::wm_arbiter_args) -> std::ffi::c_int;
}

/// The same on the twin as the persistent kernel's own block, whose lanes a thread of the host runs in turns.
fn warps() -> warpmail::HandlerImage {
    // SAFETY: `kit_warps` is an arbiter with the test handlers; there is no kernel.
    unsafe { warpmail::HandlerImage::new("kit", None, "the block runs on the CPU", "kit_arbiter", kit_warps) }
}

/// A circle of modules that pass records on and check them.
pub const RING: u32 = 0;
/// Takes one record of each input and compares their numbers.
pub const JOIN: u32 = 1;
/// Does not return for a while.
pub const STUCK: u32 = 2;
/// Takes nothing.
pub const IDLE: u32 = 3;
/// Takes only records of type 1 and length 8.
pub const STRICT: u32 = 4;
/// Fills tensors and hands them on by pointer.
pub const TENSOR_WRITER: u32 = 5;
/// Follows the pointers and checks.
pub const TENSOR_READER: u32 = 6;

/// Notes the order in which witnesses were granted.
pub const WITNESS: u32 = 7;

/// Says how many of the records that it took are on disk.
pub const DURABLE: u32 = 8;

/// Notes every record in a buffer that its state points to, and sends it on.
pub const LEDGER: u32 = 9;

/// Follows leased tensors and checks them; what it does with them then is in its state.
pub const LEASE_READER: u32 = 10;

/// Writes into leased tensors and hands them to the readers behind its outputs.
pub const LEASE_WRITER: u32 = 11;

/// The library's own relay, among the test handlers: so that it runs wherever they do.
pub const RELAY: u32 = 12;

/// Gives to a ledger, tells the arbiter, and works on until the record stands there.
pub const EARLY: u32 = 13;

/// Word `i` of record `n`, as the handlers compute it.
pub fn word_of(n: u64, i: u64) -> u64 {
    let mut x = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    x ^= x >> 29;
    x.wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// Bytes of record `n`, from byte 16 on as the ring's handlers expect them; `hops` in its second word.
pub fn ring_record(n: u64, hops: u64, payload: usize) -> Vec<u8> {
    let len = 16 + (n as usize * 37) % (payload - 15);
    let mut bytes: Vec<u8> = (0..len).map(|i| word_of(n, i as u64 / 8).to_le_bytes()[i % 8]).collect();
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes[8..16].copy_from_slice(&hops.to_le_bytes());
    bytes
}

/// Plain bytes of a plain value.
pub fn bytes_of<T: bytemuck::NoUninit>(value: &T) -> &[u8] {
    bytemuck::bytes_of(value)
}
