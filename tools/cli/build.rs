//! Compiles the handler set of `run` and the kernels of the benches.

fn main() {
    warpmail_build::HandlerSet::new("neardup", "handlers/neardup.cu", "handlers/neardup.cpp")
        .watch("handlers")
        .compile();
    warpmail_build::compile_kernels("bench_kernels", "bench_kernels/hop.cu");
}
