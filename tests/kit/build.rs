//! Compiles the handler set, and the forms of the device API for both backends.

use std::path::PathBuf;

fn main() {
    warpmail_build::HandlerSet::new("kit", "handlers/kit.cu", "handlers/kit.cpp").watch("handlers").compile();

    println!("cargo::rerun-if-changed=forms");
    warpmail_build::compile_kernels_quickly("forms_kernels", "forms/forms.cu");
    let csrc = PathBuf::from(std::env::var_os("DEP_WARPMAIL_CSRC").expect("the headers of warpmail"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .includes([csrc.join("include"), csrc.clone(), PathBuf::from(".")])
        .file("forms/forms.cpp")
        .compile("forms_twin");
}
