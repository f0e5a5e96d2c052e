//! The C functions as the header declares them (the `bindings` gate keeps the file what bindgen makes of it).
#![allow(dead_code, unreachable_pub, non_camel_case_types, clippy::all)]

use warpmail::abi::{wm_arbiter_args, wm_durable, wm_leases, wm_mailbox, wm_status, wm_step_head, wm_tensor};

include!("../../src/capi/bindings.rs");
