//! Compile-time check: for every function that the header declares there is an export of exactly its type. build.rs writes
//! one line a declaration: an array of both, whose elements only have a common type when their signatures are the same.
//! (That there is no export beyond them, `tests/consumers/run.sh` checks in the finished libraries.)

use super::{
    builder::*, checkpoint::*, device::*, image::*, pool::*, receiver::*, runtime::*, sender::*, stats::*, steps::*,
    sys, tensor::*, version::*,
};

include!(concat!(env!("OUT_DIR"), "/capi_check.rs"));
