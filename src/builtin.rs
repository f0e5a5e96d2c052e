//! Handlers that come with the library, for [`HandlerImage::builtin`](crate::HandlerImage::builtin).

/// Takes one record from each input that has one and gives it to every output, unchanged.
pub const RELAY: u32 = 0;
/// Takes what waits at each input, up to 32 records a step.
pub const DISCARD: u32 = 1;
