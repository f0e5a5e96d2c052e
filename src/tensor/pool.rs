//! The pool: memory with a limit, and the table of leases on it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::blocks::{Short, Store};
use super::books::{Core, State};
use super::collect::Done;
use super::descriptor::TensorSpec;
use super::hold::Tensor;
use super::lease::Lease;
use super::report::Counts;
use crate::abi;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::port::Pause;
use crate::wait::deadline;

/// What a pool may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// Bytes of device memory that it takes at most, counted in blocks (up to a quarter larger than what is asked for).
    /// Adopted memory is not counted: it is its owner's.
    pub limit: u64,
    /// Leases that may be open at the same time: 1 to 2^20. Each costs 104 bytes.
    pub leases: u32,
    /// Debug mode: freed memory is filled with a pattern, a write to it is found when it is used again, and readers that
    /// see the pattern are told. Slow.
    pub poison: bool,
}

impl PoolOptions {
    /// A limit in bytes, everything else as by default: 4096 leases, no debug mode.
    pub fn limit(limit: u64) -> Self {
        PoolOptions { limit, leases: 4096, poison: false }
    }
}

/// A pool of device memory for tensors, and the leases on it. Cheap to clone; any thread may use it.
///
/// Calls collect what readers have released since the last one, and call the closures of adopted memory that came free.
/// Nothing else does: a program that stops calling the pool stops collecting.
///
/// ```
/// use warpmail::{Device, DType, Pool, PoolOptions, TensorSpec, direct_mailbox};
///
/// # fn main() -> Result<(), warpmail::Error> {
/// let device = Device::twin();
/// let pool = Pool::new(&device, PoolOptions::limit(1 << 20))?;
/// let tensor = pool.alloc("hidden", &TensorSpec::new(DType::F32, &[2, 4]))?;
/// tensor.upload(&[1; 32])?;
///
/// let (mut sender, mut receiver) = direct_mailbox(&device, Default::default())?;
/// receiver.attach_pool(&pool);
/// sender.try_post(tensor.lease(1)?, b"step 7")?;
/// let (lease, note) = receiver.try_take()?.expect("posted above");
/// assert_eq!((lease.descriptor().shape(), &note[..]), (&[2, 4][..], &b"step 7"[..]));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) core: Arc<Core>,
}

impl Pool {
    /// A pool on a device. Takes memory as it is needed.
    pub fn new(device: &Device, options: PoolOptions) -> Result<Self> {
        if options.leases == 0 || options.leases > 1 << 20 {
            return Err(Error::refused(format!("{} leases", options.leases), "from 1 to 2^20"));
        }
        if options.limit == 0 {
            return Err(Error::refused(
                "a pool limit of 0 bytes",
                "a pool that only adopts still needs a limit above 0",
            ));
        }
        let n = options.leases as usize;
        let store = Store::new(device, options.limit, options.poison)?;
        let marks = (device.backend.alloc(8 * n)?, 8 * n);
        let rows = n * size_of::<abi::wm_lease_row>();
        let pinned = device
            .backend
            .alloc_pinned(rows + n * size_of::<abi::wm_lease_mail>())
            .inspect_err(|_| device.backend.free(marks.0, marks.1))?;
        let flags = if options.poison { abi::WM_LEASES_POISON } else { 0 };
        let table = |base: u64| abi::wm_leases {
            rows: base,
            marks: marks.0,
            mail: base + rows as u64,
            n_rows: options.leases,
            flags,
        };
        let state = State {
            store,
            rows: (0..n).map(|_| None).collect(),
            free_rows: (0..options.leases).rev().collect(),
            open: Vec::new(),
            cursor: 0,
            blocks: Vec::new(),
            free_blocks: Vec::new(),
            noted: Vec::new(),
            ending: Vec::new(),
            counts: Counts::default(),
        };
        let core = Core {
            device: device.clone(),
            limit: options.limit,
            poison: options.poison,
            marks,
            on_device: table(pinned.device),
            on_host: table(pinned.host as u64),
            pinned,
            state: Mutex::new(state),
            witnesses: Mutex::default(),
        };
        Ok(Pool { core: Arc::new(core) })
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        &self.core.device
    }

    /// The lease table as kernels use it (`lease_check`, `lease_release` in `warpmail/device.hpp`).
    pub fn leases(&self) -> abi::wm_leases {
        self.core.on_device
    }

    /// Memory for a tensor, with any content. `label` says in reports whose it is. When the limit, or the device, has no
    /// room: [`Error::PoolFull`], with who holds what.
    pub fn alloc(&self, label: &str, spec: &TensorSpec) -> Result<Tensor> {
        let (descriptor, bytes) = spec.check()?;
        let size = Store::size_of(bytes);
        self.core.collect(32, false);
        let mut taken = self.core.lock().store.take(size);
        if matches!(taken, Err(Short::Room)) {
            self.core.collect(usize::MAX, true);
            taken = self.core.lock().store.take(size);
        }
        match taken {
            Ok(address) => Ok(self.core.hold(descriptor, address, size, label, None)),
            Err(Short::Other(e)) => Err(e),
            Err(Short::Room) => {
                let mut state = self.core.lock();
                state.counts.refused += 1;
                Err(Error::PoolFull {
                    wanted: size,
                    used: state.store.used,
                    limit: self.core.limit,
                    holders: state.who(4),
                })
            }
        }
    }

    /// The same, waiting up to `bound` for readers to release what they have.
    pub fn alloc_within(&self, label: &str, spec: &TensorSpec, bound: Duration) -> Result<Tensor> {
        let until = deadline(bound);
        let mut pause = Pause::new();
        loop {
            match self.alloc(label, spec) {
                Err(Error::PoolFull { wanted, limit, .. }) if wanted <= limit && Instant::now() < until => pause.wait(),
                other => return other,
            }
        }
    }

    /// Takes in memory that is somebody else's, such as a framework's tensor: `address` is where `spec` begins to count
    /// its offset. `released` is called once, when no tensor and no lease holds the memory any more, by a thread that calls
    /// a pool then; never while a lease or a tensor is dropped. The memory is neither poisoned nor used for anything else.
    ///
    /// # Safety
    /// From `address` to the end of the last element is memory of the pool's device (on the twin: of this process) that
    /// stays as it is until `released` is called.
    pub unsafe fn adopt(
        &self,
        label: &str,
        address: u64,
        spec: &TensorSpec,
        released: impl FnOnce() + Send + 'static,
    ) -> Result<Tensor> {
        let (descriptor, bytes) = spec.check()?;
        self.core.device.backend.owns(address)?;
        if address.checked_add(bytes).is_none() {
            return Err(Error::refused(format!("a tensor of {bytes} bytes at {address:#x}"), "ends beyond all memory"));
        }
        if !(address + descriptor.byte_offset).is_multiple_of(u64::from(descriptor.dtype_bits / 8).next_power_of_two())
        {
            return Err(Error::refused(
                format!("a tensor at {address:#x}"),
                "its elements are not aligned to their size",
            ));
        }
        self.core.collect(32, false);
        Ok(self.core.hold(descriptor, address, bytes, label, Some(Done(Box::new(released)))))
    }

    /// A stream of the device's own on which nothing runs, for protocols in which whoever gives memory orders the stream of
    /// whoever takes it (DLPack): once that is done, [`Lease::written_on`] with it. 0 on the twin.
    pub fn intake_stream(&self) -> Result<u64> {
        self.core.device.backend.intake()
    }

    /// A lease for a descriptor that came by another way than [`Receiver::take`](crate::Receiver::take), such as in the bytes
    /// of a record. Refused by name: shares released before, a lease that has ended, one that this process holds already.
    pub fn claim(&self, descriptor: abi::wm_tensor) -> Result<Lease> {
        Lease::claim(&self.core, descriptor)
    }

    /// Collects everything that readers have released, and calls closures of adopted memory that came free. Returns how
    /// many blocks came free.
    pub fn collect(&self) -> usize {
        self.core.collect(usize::MAX, true)
    }

    /// Gives free memory that is kept for later back to the device.
    pub fn trim(&self) {
        self.core.collect(usize::MAX, false);
        self.core.lock().store.shrink(0);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.core.collect(usize::MAX, false);
    }
}
