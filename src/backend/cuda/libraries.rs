//! Loaded fatbins, kept for the process: the driver keeps some memory of the host's with every load and unload, so a program
//! that makes runtimes again and again loads each of its images once.
//!
//! A library belongs to no context. Its functions do: they are looked up in the current one each time, and the driver loads
//! the code into a context that has not seen it, also into a primary context that was made anew after a reset.

use std::borrow::Cow;
use std::ffi::{CStr, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::{attribute, driver};
use crate::error::Result;

/// Libraries that are kept though nobody uses them.
const KEPT: usize = 8;

static LIBRARIES: Mutex<Kept<sys::CUlibrary>> = Mutex::new(Kept(Vec::new()));

/// What was loaded of one image, by the image's bytes.
#[derive(Debug)]
struct Loaded<L> {
    image: Cow<'static, [u8]>,
    raw: L,
}

/// Least recently asked for first. A holder of an `Arc` may use what it names; one that is only here is unused, and stays so
/// while the list is borrowed mutably.
#[derive(Debug)]
struct Kept<L>(Vec<Arc<Loaded<L>>>);

impl<L> Kept<L> {
    /// What was loaded of this image, or `load` of it.
    fn get(&mut self, image: Cow<'static, [u8]>, load: impl FnOnce(&[u8]) -> Result<L>) -> Result<Arc<Loaded<L>>> {
        let found = match self.0.iter().position(|known| is_same(&known.image, &image)) {
            Some(at) => self.0.remove(at),
            None => Arc::new(Loaded { raw: load(&image)?, image }),
        };
        self.0.push(found.clone());
        Ok(found)
    }

    /// Takes out the unused that are too many, those not asked for for longest.
    fn surplus(&mut self) -> Vec<L> {
        let unused = self.0.iter().filter(|known| Arc::strong_count(known) == 1).count();
        let (mut many, mut out) = (unused.saturating_sub(KEPT), Vec::new());
        for known in std::mem::take(&mut self.0) {
            if many == 0 {
                self.0.push(known);
                continue;
            }
            match Arc::try_unwrap(known) {
                Ok(unused) => {
                    out.push(unused.raw);
                    many -= 1;
                }
                Err(used) => self.0.push(used),
            }
        }
        out
    }
}

fn is_same(a: &[u8], b: &[u8]) -> bool {
    (std::ptr::eq(a.as_ptr(), b.as_ptr()) && a.len() == b.len()) || a == b
}

/// Every change of the list is whole before anything can panic.
fn libraries() -> MutexGuard<'static, Kept<sys::CUlibrary>> {
    LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loaded library, which stays so at least as long as this lives. Runtimes with the same image share it: what is set on
/// its functions must suit all of them.
#[derive(Debug, Clone)]
pub(super) struct Library(Arc<Loaded<sys::CUlibrary>>);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kept<sys::CUlibrary> {}
// SAFETY: as above.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loaded now, or before. A context has been entered.
    pub(super) fn of(image: Cow<'static, [u8]>) -> Result<Library> {
        let (found, surplus) = {
            let mut libraries = libraries();
            (libraries.get(image, load), libraries.surplus())
        };
        for raw in surplus {
            // SAFETY: taken out of the list, where it was the last to hold it: nobody can launch anything of it any more, and
            // who launched something held it until that had ended.
            let _ = unsafe { sys::cuLibraryUnload(raw) };
        }
        found.map(Library)
    }

    /// A kernel for the context that has been entered, with its code loaded too: a lazy load at the first launch would wait
    /// for whatever runs. None if there is none of that name.
    pub(super) fn kernel(&self, name: &CStr) -> Result<Option<sys::CUfunction>> {
        let (mut kernel, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the library is loaded and the name is a C string.
        match unsafe { sys::cuLibraryGetKernel(&mut kernel, self.0.raw, name.as_ptr()) } {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => return Ok(None),
            other => other.result().map_err(driver("cuLibraryGetKernel"))?,
        }
        // SAFETY: the kernel belongs to the loaded library.
        unsafe { sys::cuKernelGetFunction(&mut function, kernel) }.result().map_err(driver("cuKernelGetFunction"))?;
        // SAFETY: the function belongs to the loaded library.
        unsafe { sys::cuFuncLoad(function) }.result().map_err(driver("cuFuncLoad"))?;
        Ok(Some(function))
    }

    /// Keeps it for as long as the process lives: something of it may be running.
    pub(super) fn leak(&self) {
        std::mem::forget(self.clone());
    }
}

fn load(image: &[u8]) -> Result<sys::CUlibrary> {
    let mut library = std::ptr::null_mut();
    let null = std::ptr::null_mut::<c_void>();
    // SAFETY: `image` is a whole fatbin, which the driver copies; no options are given.
    unsafe {
        let from = image.as_ptr().cast::<c_void>();
        sys::cuLibraryLoadData(&mut library, from, null.cast(), null.cast(), 0, null.cast(), null.cast(), 0)
    }
    .result()
    .map_err(driver("cuLibraryLoadData"))?;
    Ok(library)
}

/// Lets a function be launched with so many bytes of dynamic shared memory. Another runtime that launches the same function
/// may need more: the limit only ever rises.
pub(super) fn allow_shared(function: sys::CUfunction, bytes: usize) -> Result<()> {
    let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let _one_at_a_time = libraries();
    if attribute(function, limit)? as usize >= bytes {
        return Ok(());
    }
    // SAFETY: the function belongs to a loaded library; the caller has checked the size against the device's limit.
    unsafe { sys::cuFuncSetAttribute(function, limit, bytes as i32) }.result().map_err(driver("cuFuncSetAttribute"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn get(kept: &mut Kept<u32>, image: &[u8], loads: &mut u32) -> Arc<Loaded<u32>> {
        let load = |_: &[u8]| {
            *loads += 1;
            Ok(*loads)
        };
        kept.get(Cow::Owned(image.to_vec()), load).expect("loads")
    }

    #[test]
    fn an_image_is_loaded_once() {
        let (mut kept, mut loads) = (Kept(Vec::new()), 0);
        for _ in 0..3 {
            assert_eq!(get(&mut kept, b"one", &mut loads).raw, 1);
            assert_eq!(get(&mut kept, b"other", &mut loads).raw, 2);
            assert!(kept.surplus().is_empty());
        }
    }

    #[test]
    fn a_load_that_fails_leaves_nothing() {
        let (mut kept, mut loads) = (Kept::<u32>(Vec::new()), 0);
        assert!(kept.get(Cow::Borrowed(b"bad"), |_| Err(Error::Failed("no".into()))).is_err());
        assert!(kept.0.is_empty());
        assert_eq!(get(&mut kept, b"bad", &mut loads).raw, 1);
    }

    #[test]
    fn of_the_unused_the_oldest_go_and_none_that_is_used() {
        let (mut kept, mut loads) = (Kept(Vec::new()), 0);
        let used: Vec<_> = (0..20).map(|i| get(&mut kept, &[i], &mut loads)).collect();
        assert!(kept.surplus().is_empty());
        for i in 20..20 + 2 * KEPT as u8 {
            get(&mut kept, &[i], &mut loads);
        }
        // Asked for again, it is not the oldest any more.
        get(&mut kept, &[20], &mut loads);
        let gone: Vec<_> = (22..22 + KEPT as u32).collect();
        assert_eq!(kept.surplus(), gone);
        assert_eq!(kept.0.len(), 20 + KEPT);
        for known in used.iter().rev() {
            assert_eq!(get(&mut kept, &known.image, &mut loads).raw, known.raw);
        }
        drop(used);
        assert_eq!(kept.surplus().len(), 20);
        assert_eq!(kept.0.len(), KEPT);
    }
}
