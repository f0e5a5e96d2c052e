//! Compiles the handler set, and the forms of the device API for both backends.

use std::path::PathBuf;

fn main() {
    warpmail_build::HandlerSet::new("kit", "handlers/kit.cu", "handlers/kit.cpp").watch("handlers").compile();

    println!("cargo::rerun-if-changed=forms");
    warpmail_build::compile_kernels_quickly("forms_kernels", "forms/forms.cu");
    let csrc = PathBuf::from(std::env::var_os("DEP_WARPMAIL_CSRC").expect("the headers of warpmail"));
    let mut twin = cc::Build::new();
    twin.cpp(true).std("c++17").opt_level(2).warnings(true).extra_warnings(true).includes([
        csrc.join("include"),
        csrc.clone(),
        PathBuf::from("."),
    ]);
    twin.clone().file("forms/forms.cpp").compile("forms_twin");
    // The code of warps, lane by lane: jumps between stacks, which a checked longjmp takes for an error.
    twin.define("WARPMAIL_HOST_WARPS", None)
        .flag("-U_FORTIFY_SOURCE")
        .flag("-Wno-unknown-pragmas")
        .files(["forms/warps.cpp", "handlers/warps.cpp"])
        .compile("kit_warps");
}
