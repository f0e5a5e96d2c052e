//! Compiles the handler set.

fn main() {
    warpmail_build::HandlerSet::new("kit", "handlers/kit.cu", "handlers/kit.cpp").watch("handlers").compile();
}
