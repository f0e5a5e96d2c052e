//! What belongs to a module's state besides the bytes in its options: buffers, and words that hold addresses in them.

use crate::device::DeviceBuffer;
use crate::error::{Error, Result};
use crate::graph::{Builder, ModuleId};

/// A buffer that is part of a module's state, of one graph: see [`Builder::state_buffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateBuffer(pub(crate) u32);

#[derive(Debug, Clone)]
pub(crate) struct BufferPlan {
    pub(crate) module: u32,
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct PointerPlan {
    pub(crate) module: u32,
    /// Offset of the word in the module's state.
    pub(crate) at: usize,
    /// Row of the buffers.
    pub(crate) buffer: u32,
}

/// All of a graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatePlan {
    pub(crate) buffers: Vec<BufferPlan>,
    pub(crate) pointers: Vec<PointerPlan>,
}

impl Builder {
    /// Makes a buffer part of a module's state: a [checkpoint](crate::checkpoint) saves and restores it. It is kept as long as
    /// the runtime and its ends live. What it holds must mean the same at another address; words of the module's state
    /// that point into it are declared with [`pointer`](Self::pointer).
    pub fn state_buffer(&mut self, module: ModuleId, name: &str, buffer: DeviceBuffer) -> Result<StateBuffer> {
        let (address, bytes) = (buffer.address(), buffer.len());
        // SAFETY: the buffer is this address and size, and the graph keeps it from here on.
        let id = unsafe { self.state_memory(module, name, address, bytes) }?;
        self.keep(buffer);
        Ok(id)
    }

    /// The same for memory that is not the runtime's, such as a tensor of a framework.
    ///
    /// # Safety
    /// `address` has `bytes` bytes of memory of the graph's device (on the twin: of this process) that stay allocated as
    /// long as the runtime lives, and that nobody but modules uses during a checkpoint or a restore.
    pub unsafe fn state_memory(
        &mut self,
        module: ModuleId,
        name: &str,
        address: u64,
        bytes: usize,
    ) -> Result<StateBuffer> {
        let owner = self.module_name(module)?;
        let what = || format!("buffer {name} of module {owner}");
        if name.is_empty() {
            return Err(Error::refused(
                what(),
                "every buffer has a name, so that a checkpoint can be told from another",
            ));
        }
        if self.state.buffers.iter().any(|b| b.module == module.0 && b.name == name) {
            return Err(Error::refused(what(), "the module has a buffer of this name already"));
        }
        if address == 0 || bytes == 0 || address.checked_add(bytes as u64).is_none() {
            return Err(Error::refused(what(), format!("{bytes} bytes at {address:#x} cannot be")));
        }
        let id = self.state.buffers.len() as u32;
        self.state.buffers.push(BufferPlan { module: module.0, name: name.into(), address, bytes });
        Ok(StateBuffer(id))
    }

    /// Says that 8 bytes of a module's state hold an address in a buffer, of this module or another, or 0. The word itself
    /// is the caller's to fill in, in [`ModuleOptions::state`](crate::ModuleOptions); a checkpoint keeps it as a distance, and
    /// a restore makes it an address in the buffer of that run.
    pub fn pointer(&mut self, module: ModuleId, offset: usize, buffer: StateBuffer) -> Result<&mut Self> {
        let name = self.module_name(module)?;
        let what = || format!("a pointer at offset {offset} of the state of module {name}");
        if self.state.buffers.get(buffer.0 as usize).is_none() {
            return Err(Error::refused(what(), "its buffer belongs to another graph: this one has no such buffer"));
        }
        let bytes = self.modules[module.index()].options.state.len();
        if offset.checked_add(8).is_none_or(|end| end > bytes) {
            return Err(Error::refused(what(), format!("outside its {bytes} bytes")));
        }
        if self.state.pointers.iter().any(|p| p.module == module.0 && p.at.abs_diff(offset) < 8) {
            return Err(Error::refused(what(), "overlaps another pointer"));
        }
        self.state.pointers.push(PointerPlan { module: module.0, at: offset, buffer: buffer.0 });
        Ok(self)
    }
}
