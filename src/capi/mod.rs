//! The C API: `csrc/include/warpmail/warpmail.h` over the public Rust API. The header is the truth.
//!
//! Every export goes the same way: [`border::enter`] keeps panics inside and turns a [`fault::Fault`] into a status and a
//! message; [`args`] checks what was passed; [`table`] turns a handle into what it names, or says why it names nothing. The
//! contracts of the functions, and what their pointers must be, stand in the header.

mod args;
mod border;
mod builder;
mod cell;
mod check;
mod checkpoint;
mod device;
mod fault;
mod handle;
mod image;
mod pool;
mod receiver;
mod runtime;
mod sender;
mod stats;
mod steps;
mod sys;
mod table;
mod tensor;
mod version;
