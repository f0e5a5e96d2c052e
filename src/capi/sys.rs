//! What bindgen makes of `warpmail.h`: types, constants, and the declarations that the exports are checked against.
#![allow(dead_code, missing_docs, non_camel_case_types, unreachable_pub, clippy::all)]
#![allow(clippy::undocumented_unsafe_blocks)]

use crate::abi::{wm_arbiter_args, wm_durable, wm_leases, wm_mailbox, wm_status, wm_step_head, wm_tensor};

include!(concat!(env!("OUT_DIR"), "/capi_bindings.rs"));
