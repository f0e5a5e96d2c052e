//! Handlers that come with the library, for [`HandlerImage::builtin`](crate::HandlerImage::builtin).

/// Takes one record from each input that has one and gives it to every output, unchanged.
pub const RELAY: u32 = 0;
/// Takes one record from each input that has one.
pub const DISCARD: u32 = 1;
