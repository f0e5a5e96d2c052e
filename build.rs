//! Binds the C header, compiles the CPU twin, and compiles the kernels when an nvcc is there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let csrc = root.join("csrc");
    println!("cargo::rerun-if-changed=csrc");
    println!("cargo::metadata=csrc={}", csrc.display());
    bind(&root, &out);
    twin(&csrc);
    kernels(&root, &csrc, &out);
    soname();
    commit(&root);
}

/// The shared library's name for the loader: programs linked with one 0.x do not load another.
fn soname() {
    let part = |name: &str| env::var(format!("CARGO_PKG_VERSION_{name}")).expect("cargo sets it");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libwarpmail.so.{}.{}", part("MAJOR"), part("MINOR"));
}

/// Rust's view of the C headers: the bytes with the twin's functions, and the C API. Without a libclang the bindings kept
/// in the tree serve; a gate checks that they are what bindgen makes.
fn bind(root: &Path, out: &Path) {
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    println!("cargo::rerun-if-env-changed=WARPMAIL_UPDATE_BINDINGS");
    let has_libclang = find_libclang(root);
    if !has_libclang {
        println!("cargo::warning=no libclang: using the bindings kept in src (tools/setup.sh fetches one)");
    }
    let bytes = |b: bindgen::Builder| b.allowlist_item("(wm|WM)_.*").derive_default(true);
    let calls = |b: bindgen::Builder| {
        // The bytes are bound once, by the other: these bindings only name them.
        b.allowlist_item("(warpmail|WARPMAIL)_.*").blocklist_item("(wm|WM)_.*").derive_default(true)
    };
    type Choose<'a> = &'a dyn Fn(bindgen::Builder) -> bindgen::Builder;
    let headers: [(&str, &str, &str, Choose); 2] = [
        ("csrc/twin/host.h", "src/bindings.rs", "bindings.rs", &bytes),
        ("csrc/include/warpmail/warpmail.h", "src/capi/bindings.rs", "capi_bindings.rs", &calls),
    ];
    for (header, kept, name, choose) in headers {
        println!("cargo::rerun-if-changed={kept}");
        let (kept, target) = (root.join(kept), out.join(name));
        if !has_libclang {
            fs::copy(&kept, &target).expect("the kept bindings are part of the source");
            continue;
        }
        let text = bindgen_of(root, header, choose);
        assert!(text.contains("pub struct "), "the allow-list for {header} matched nothing");
        fs::write(&target, &text).expect("OUT_DIR can be written");
        if env::var_os("WARPMAIL_UPDATE_BINDINGS").is_some() {
            fs::write(&kept, &text).expect("the kept bindings can be written");
        }
    }
    check_exports(out);
}

fn bindgen_of(root: &Path, header: &str, choose: &dyn Fn(bindgen::Builder) -> bindgen::Builder) -> String {
    // Clang from a wheel comes without its own headers; the C compiler's serve.
    let include = Command::new("cc").arg("-print-file-name=include").output();
    let include = include.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
    let builder = bindgen::Builder::default()
        .header(root.join(header).display().to_string())
        .clang_arg(format!("-I{}", root.join("csrc/include").display()))
        .clang_arg(format!("-I{}", root.join("csrc").display()))
        .clang_arg(format!("-I{include}"))
        .generate_comments(false)
        .use_core()
        .rust_edition(bindgen::RustEdition::Edition2024);
    choose(builder).generate().unwrap_or_else(|e| panic!("{header} must parse: {e}")).to_string()
}

/// One line for every function that the C header declares: there is an export of its name and exactly its type.
fn check_exports(out: &Path) {
    let bindings = fs::read_to_string(out.join("capi_bindings.rs")).expect("written above");
    let names = bindings.lines().filter_map(|line| line.trim().strip_prefix("pub fn ")?.split('(').next());
    let lines: String = names.map(|f| format!("const _: () = {{ let _ = [sys::{f}, {f}]; }};\n")).collect();
    assert!(!lines.is_empty(), "the C header declares no function");
    fs::write(out.join("capi_check.rs"), lines).expect("OUT_DIR can be written");
}

fn find_libclang(root: &Path) -> bool {
    let mut folders: Vec<PathBuf> = env::var_os("LIBCLANG_PATH").map(PathBuf::from).into_iter().collect();
    folders.push(root.join(".toolchain/libclang"));
    if let Ok(versions) = fs::read_dir("/usr/lib") {
        folders.extend(
            versions.flatten().map(|e| e.path().join("lib")).filter(|p| p.display().to_string().contains("llvm")),
        );
    }
    folders.push("/usr/lib/x86_64-linux-gnu".into());
    folders.push("/usr/lib/aarch64-linux-gnu".into());
    let has_libclang = |folder: &PathBuf| {
        fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|e| {
                e.is_ok_and(|e| {
                    let name = e.file_name().to_string_lossy().into_owned();
                    name.starts_with("libclang.so") || (name.starts_with("libclang-1") && name.contains(".so"))
                })
            })
        })
    };
    let Some(folder) = folders.into_iter().find(has_libclang) else {
        return false;
    };
    // SAFETY: nothing else runs in this build script yet.
    unsafe { env::set_var("LIBCLANG_PATH", folder) };
    true
}

fn twin(csrc: &Path) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .include(csrc.join("include"))
        .include(csrc)
        .file(csrc.join("twin/host.cpp"))
        .compile("warpmail_twin");
}

fn kernels(root: &Path, csrc: &Path, out: &Path) {
    let (fatbin, gates, missing) = match warpmail_build::find_nvcc(Some(root)) {
        Ok(nvcc) => {
            let (fatbin, gates) = (out.join("warpmail.fatbin"), out.join("gates.fatbin"));
            let includes = [csrc.join("include"), csrc.to_path_buf()];
            if let Err(message) =
                warpmail_build::compile_fatbin(&nvcc, &csrc.join("device/warpmail.cu"), &includes, &fatbin)
                    .and_then(|()| warpmail_build::link_fatbin(&nvcc, &csrc.join("device/gates.cu"), &includes, &gates))
            {
                eprintln!("{message}");
                std::process::exit(1);
            }
            let embed = |path: &Path| format!("Some(include_bytes!({:?}))", path.display().to_string());
            (embed(&fatbin), embed(&gates), String::new())
        }
        Err(reason) => {
            println!("cargo::warning=building without CUDA kernels: {reason}; the CPU twin serves");
            ("None".into(), "None".into(), reason)
        }
    };
    let archs = if missing.is_empty() { warpmail_build::archs().join(",") } else { String::new() };
    let text = format!(
        "pub(crate) const FATBIN: Option<&[u8]> = {fatbin};\n\
         pub(crate) const GATES: Option<&[u8]> = {gates};\n\
         pub(crate) const MISSING: &str = {missing:?};\n\
         pub(crate) const ARCHS: &str = {archs:?};\n"
    );
    fs::write(out.join("kernels.rs"), text).expect("OUT_DIR can be written");
}

/// The commit that the figures name: WARPMAIL_COMMIT when it is set (tools/bundle.sh does, and says there when the tree
/// had changes), else the checkout's, or `unknown` outside one.
fn commit(root: &Path) {
    println!("cargo::rerun-if-env-changed=WARPMAIL_COMMIT");
    if let Ok(commit) = env::var("WARPMAIL_COMMIT") {
        println!("cargo::rustc-env=WARPMAIL_COMMIT={commit}");
        return;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    if let Some(dir) = git(&["rev-parse", "--git-dir"]) {
        let dir = root.join(dir);
        for name in ["HEAD", "logs/HEAD"] {
            if dir.join(name).exists() {
                println!("cargo::rerun-if-changed={}", dir.join(name).display());
            }
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=WARPMAIL_COMMIT={commit}");
}
