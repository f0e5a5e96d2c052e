//! Build-script support: finds nvcc and compiles warpmail's kernels, and yours, into one fatbin each.
//!
//! A crate with its own handler set says in its `build.rs`:
//!
//! ```no_run
//! warpmail_build::HandlerSet::new("my_handlers", "handlers/my.cu", "handlers/my.cpp")
//!     .kernel("my_arbiter")
//!     .twin("my_twin")
//!     .compile();
//! ```
//!
//! and in its source `include!(concat!(env!("OUT_DIR"), "/my_handlers.rs"));`, which defines `my_handlers::image()`.
//! Without nvcc the image holds the twin only and says why.
//!
//! Environment: `WARPMAIL_NVCC` (a path, or `none` to build without kernels), `NVCC`, `CUDA_HOME`,
//! `WARPMAIL_CUDA_ARCHS` (default `80,87,90,100`; the last also as PTX).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compute capabilities built when `WARPMAIL_CUDA_ARCHS` is not set.
pub const DEFAULT_ARCHS: &str = "80,87,90,100";

/// The oldest nvcc that knows all of [`DEFAULT_ARCHS`].
pub const OLDEST_NVCC: (u32, u32) = (12, 8);

/// An nvcc that fits, or the reason why there is none.
pub type NvccStatus = Result<PathBuf, String>;

/// Looks for nvcc: `WARPMAIL_NVCC`, `NVCC`, `CUDA_HOME`, the project's `.toolchain`, the path, `/usr/local/cuda`.
pub fn find_nvcc(toolchain_root: Option<&Path>) -> NvccStatus {
    for name in ["WARPMAIL_NVCC", "NVCC", "CUDA_HOME", "WARPMAIL_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Some(chosen) = env::var_os("WARPMAIL_NVCC") {
        if chosen == "none" {
            return Err("kernels were switched off with WARPMAIL_NVCC=none".into());
        }
        return check_nvcc(Path::new(&chosen));
    }
    let mut candidates = Vec::new();
    candidates.extend(env::var_os("NVCC").map(PathBuf::from));
    candidates.extend(env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")));
    candidates.extend(toolchain_root.map(|root| root.join(".toolchain/cuda/bin/nvcc")));
    if let Some(path) = env::var_os("PATH") {
        candidates.extend(env::split_paths(&path).map(|dir| dir.join("nvcc")));
    }
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    let mut reasons = Vec::new();
    for candidate in candidates.iter().filter(|c| c.is_file()) {
        match check_nvcc(candidate) {
            Ok(path) => return Ok(path),
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.push("no nvcc was found when this was built; tools/setup.sh fetches one".into());
    Err(reasons.join("; "))
}

fn check_nvcc(path: &Path) -> NvccStatus {
    let output =
        Command::new(path).arg("--version").output().map_err(|e| format!("{} cannot be run: {e}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split("release ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .and_then(|v| v.split_once('.'))
        .and_then(|(major, minor)| Some((major.trim().parse().ok()?, minor.trim().parse().ok()?)));
    match version {
        Some(v) if v >= OLDEST_NVCC => Ok(path.to_path_buf()),
        Some((major, minor)) => Err(format!(
            "{} is version {major}.{minor}; {}.{} or newer is needed",
            path.display(),
            OLDEST_NVCC.0,
            OLDEST_NVCC.1
        )),
        None => Err(format!("{} does not say its version", path.display())),
    }
}

/// The compute capabilities to build for, without the dot, in the given order.
pub fn archs() -> Vec<String> {
    let list = env::var("WARPMAIL_CUDA_ARCHS").unwrap_or_default();
    let list = if list.trim().is_empty() { DEFAULT_ARCHS } else { &list };
    list.split([',', ';', ' ']).map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect()
}

/// Compiles one `.cu` to a fatbin for every architecture of [`archs`] and PTX of the last. The compiler is driven through
/// the `cc` crate, so that `CXX` and friends choose its host compiler.
pub fn compile_fatbin(nvcc: &Path, source: &Path, includes: &[PathBuf], out: &Path) -> Result<(), String> {
    let archs = archs();
    compile_fatbin_for(nvcc, source, includes, out, &archs, archs.last(), &[])
}

/// The same for a `.cu` that calls the device runtime (conditional nodes of graphs), which is linked with it: for the
/// architectures alone, since PTX cannot be linked ahead.
pub fn link_fatbin(nvcc: &Path, source: &Path, includes: &[PathBuf], out: &Path) -> Result<(), String> {
    compile_fatbin_for(nvcc, source, includes, out, &archs(), None, &["-rdc=true", "-dlink", "-lcudadevrt"])
}

fn compile_fatbin_for(
    nvcc: &Path,
    source: &Path,
    includes: &[PathBuf],
    out: &Path,
    archs: &[String],
    ptx: Option<&String>,
    more: &[&str],
) -> Result<(), String> {
    // SAFETY: build scripts are single-threaded here; cc reads the variable when it looks for its CUDA compiler.
    unsafe { env::set_var("NVCC", nvcc) };
    let mut build = cc::Build::new();
    build.cuda(true).cudart("none").cargo_metadata(false).debug(false).opt_level(3).warnings(false);
    let compiler = build.try_get_compiler().map_err(|e| format!("cc cannot drive nvcc: {e}"))?;
    // nvlink writes the folders it searches into what it links, and nvcc names them by where it was called from: called from
    // its own folder, it names none of this machine's.
    let given = compiler.path();
    let mut command = Command::new(given);
    #[cfg(unix)]
    if let Ok(nvcc) = fs::canonicalize(given)
        && let (Some(folder), Some(name)) = (nvcc.parent(), nvcc.file_name())
        && given.file_name() == Some(name)
    {
        use std::os::unix::process::CommandExt;
        command = Command::new(&nvcc);
        command.current_dir(folder).arg0(Path::new(".").join(name));
    }
    command.args(["-std=c++17", "-O3", "-fatbin", "-Xcompiler", "-Wall,-Wextra"]).arg("-o").arg(out);
    // Each architecture is a compilation of its own: as many side by side as cargo has jobs.
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1);
    command.arg(format!("--threads={}", jobs.min(archs.len() + 1).max(1)));
    // Line information names the folders of this machine: it follows the profile, as cargo tells build scripts.
    if env::var("DEBUG").is_ok_and(|debug| debug != "false") {
        command.arg("-lineinfo");
    }
    for include in includes {
        command.arg("-I").arg(include);
    }
    for arch in archs {
        command.arg("-gencode").arg(format!("arch=compute_{arch},code=sm_{arch}"));
    }
    if let Some(ptx) = ptx {
        command.arg("-gencode").arg(format!("arch=compute_{ptx},code=compute_{ptx}"));
    }
    command.arg(source).args(more);
    let output = command.output().map_err(|e| format!("{} cannot be run: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Compiles one `.cu` of a crate that depends on `warpmail`, for kernels that are not handlers, and writes
/// `$OUT_DIR/<name>.rs` with `FATBIN: Option<&[u8]>` and `MISSING: &str`, which says why there is none.
pub fn compile_kernels(name: &str, source: &str) {
    let archs = archs();
    compile_kernels_for(name, source, &archs, archs.last());
}

/// As [`compile_kernels`], but unless `WARPMAIL_CUDA_ARCHS` chooses, only PTX of the oldest architecture, which the driver
/// compiles when it is loaded: for tests, whose kernels are large and whose speed does not matter.
pub fn compile_kernels_quickly(name: &str, source: &str) {
    let (archs, chosen) = (archs(), env::var("WARPMAIL_CUDA_ARCHS").is_ok_and(|list| !list.trim().is_empty()));
    let cubins = if chosen { archs.as_slice() } else { &[] };
    compile_kernels_for(name, source, cubins, if chosen { archs.last() } else { archs.first() });
}

fn compile_kernels_for(name: &str, source: &str, archs: &[String], ptx: Option<&String>) {
    let compile = || -> Result<(), String> {
        let var =
            |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set: not a build script?"));
        let (out, csrc, crate_dir) = (var("OUT_DIR")?, var("DEP_WARPMAIL_CSRC")?, var("CARGO_MANIFEST_DIR")?);
        println!("cargo::rerun-if-changed={source}");
        println!("cargo::rerun-if-changed={}", csrc.display());
        let (fatbin, missing) = match find_nvcc(csrc.parent()) {
            Ok(nvcc) => {
                let fatbin = out.join(format!("{name}.fatbin"));
                let includes = [csrc.join("include"), csrc.clone(), crate_dir.clone()];
                compile_fatbin_for(&nvcc, &crate_dir.join(source), &includes, &fatbin, archs, ptx, &[])?;
                (format!("Some(include_bytes!({:?}))", fatbin.display().to_string()), String::new())
            }
            Err(reason) => ("None".into(), reason),
        };
        let text = format!(
            "pub(crate) const FATBIN: Option<&[u8]> = {fatbin};\npub(crate) const MISSING: &str = {missing:?};\n"
        );
        fs::write(out.join(format!("{name}.rs")), text).map_err(|e| format!("{name}.rs cannot be written: {e}"))
    };
    if let Err(message) = compile() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

/// A handler set: one `.cu` for the device, one `.cpp` for the twin.
#[derive(Debug)]
pub struct HandlerSet {
    name: String,
    cuda: PathBuf,
    twin: PathBuf,
    kernel: String,
    twin_entry: String,
    watched: Vec<PathBuf>,
}

impl HandlerSet {
    /// `name` is the Rust module that the generated file defines; the paths are relative to the crate.
    pub fn new(name: &str, cuda: impl Into<PathBuf>, twin: impl Into<PathBuf>) -> Self {
        HandlerSet {
            name: name.into(),
            cuda: cuda.into(),
            twin: twin.into(),
            kernel: format!("{name}_arbiter"),
            twin_entry: format!("{name}_twin"),
            watched: Vec::new(),
        }
    }

    /// Name of the `extern "C" __global__` function; `<name>_arbiter` if not set.
    pub fn kernel(mut self, name: &str) -> Self {
        self.kernel = name.into();
        self
    }

    /// Name of the twin's `extern "C"` function; `<name>_twin` if not set.
    pub fn twin(mut self, name: &str) -> Self {
        self.twin_entry = name.into();
        self
    }

    /// A header (or folder) that a change of must rebuild the set.
    pub fn watch(mut self, path: impl Into<PathBuf>) -> Self {
        self.watched.push(path.into());
        self
    }

    /// Compiles both and writes `$OUT_DIR/<name>.rs`. Ends the build with the compiler's message when either fails.
    pub fn compile(self) {
        if let Err(message) = self.try_compile() {
            println!("cargo::error={}", message.replace('\n', "\\n"));
            eprintln!("{message}");
            std::process::exit(1);
        }
    }

    fn try_compile(&self) -> Result<(), String> {
        let var =
            |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set: not a build script?"));
        let out_dir = var("OUT_DIR")?;
        let csrc = var("DEP_WARPMAIL_CSRC").map_err(|_| {
            "DEP_WARPMAIL_CSRC is not set: the crate must depend on `warpmail` directly for its headers".to_string()
        })?;
        let crate_dir = var("CARGO_MANIFEST_DIR")?;
        let includes = [csrc.join("include"), csrc.clone(), crate_dir.clone()];
        for path in [&self.cuda, &self.twin].into_iter().chain(&self.watched) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        println!("cargo::rerun-if-changed={}", csrc.display());

        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .warnings(true)
            .extra_warnings(true)
            .includes(&includes)
            .file(crate_dir.join(&self.twin))
            .try_compile(&format!("{}_twin", self.name))
            .map_err(|e| e.to_string())?;

        let (fatbin, missing) = match find_nvcc(csrc.parent()) {
            Ok(nvcc) => {
                let fatbin = out_dir.join(format!("{}.fatbin", self.name));
                compile_fatbin(&nvcc, &crate_dir.join(&self.cuda), &includes, &fatbin)?;
                (format!("Some(include_bytes!({:?}))", fatbin.display().to_string()), String::new())
            }
            Err(reason) => ("None".into(), reason),
        };
        let (name, kernel, twin) = (&self.name, &self.kernel, &self.twin_entry);
        let text = format!(
            "/// Generated by warpmail-build.\n\
             mod {name} {{\n\
             unsafe extern \"C\" {{ fn {twin}(args: *const ::warpmail::abi::wm_arbiter_args) -> ::core::ffi::c_int; }}\n\
             /// The handler set `{name}`.\n\
             pub(crate) fn image() -> ::warpmail::HandlerImage {{\n\
             // SAFETY: both were compiled from the same handler set against the headers of this version of warpmail.\n\
             unsafe {{ ::warpmail::HandlerImage::new({name:?}, {fatbin}, {missing:?}, {kernel:?}, {twin}) }}\n\
             }}\n}}\n"
        );
        fs::write(out_dir.join(format!("{name}.rs")), text).map_err(|e| format!("{name}.rs cannot be written: {e}"))
    }
}
