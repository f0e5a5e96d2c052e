//! The kinds of handles, and what each names.

use std::sync::Arc;

use super::cell::Cell;
use super::sys;
use crate::device::Device;
use crate::graph::Builder;
use crate::image::HandlerImage;
use crate::port::{Receiver, Sender};
use crate::tensor::{Lease, Pool, Tensor};

/// What a handle says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    Device = 1,
    Image,
    Builder,
    Runtime,
    Sender,
    Receiver,
    Pool,
    Tensor,
    Lease,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Device,
        Kind::Image,
        Kind::Builder,
        Kind::Runtime,
        Kind::Sender,
        Kind::Receiver,
        Kind::Pool,
        Kind::Tensor,
        Kind::Lease,
    ];

    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u64 == bits)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Device => "warpmail_device",
            Kind::Image => "warpmail_image",
            Kind::Builder => "warpmail_builder",
            Kind::Runtime => "warpmail_runtime",
            Kind::Sender => "warpmail_sender",
            Kind::Receiver => "warpmail_receiver",
            Kind::Pool => "warpmail_pool",
            Kind::Tensor => "warpmail_tensor",
            Kind::Lease => "warpmail_lease",
        }
    }
}

/// What the table keeps for a handle.
pub(super) enum Object {
    Device(Device),
    Image(Arc<HandlerImage>),
    Builder(Box<Builder>),
    Runtime(Arc<Cell>),
    Sender(Box<Sender>),
    Receiver(Box<Receiver>),
    Pool(Pool),
    Tensor(Box<Tensor>),
    Lease(Box<Lease>),
}

/// An opaque type of the header.
pub(super) trait Handle: Sized {
    const KIND: Kind;
    /// Whether many threads may use it at the same time.
    const SHARED: bool;
    type Value: Send;
    fn value(object: &mut Object) -> Option<&mut Self::Value>;
}

macro_rules! handles {
    ($($opaque:ident: $kind:ident($value:ty), shared $shared:literal;)*) => {$(
        impl Handle for sys::$opaque {
            const KIND: Kind = Kind::$kind;
            const SHARED: bool = $shared;
            type Value = $value;
            #[inline]
            fn value(object: &mut Object) -> Option<&mut Self::Value> {
                match object {
                    Object::$kind(value) => Some(value),
                    _ => None,
                }
            }
        }
    )*};
}
handles! {
    warpmail_device: Device(Device), shared true;
    warpmail_image: Image(Arc<HandlerImage>), shared true;
    warpmail_builder: Builder(Builder), shared false;
    warpmail_runtime: Runtime(Arc<Cell>), shared true;
    warpmail_sender: Sender(Sender), shared false;
    warpmail_receiver: Receiver(Receiver), shared false;
    warpmail_pool: Pool(Pool), shared true;
    warpmail_tensor: Tensor(Tensor), shared false;
    warpmail_lease: Lease(Lease), shared false;
}

// An id is 64 bits in the shape of a pointer.
const _: () = assert!(size_of::<*mut sys::warpmail_sender>() == 8, "handles need 64-bit pointers");
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Object>();
};
