//! Compiles the handler sets of `run` and `bench`, and the kernels of the benches.

fn main() {
    warpmail_build::HandlerSet::new("neardup", "handlers/neardup.cu", "handlers/neardup.cpp")
        .watch("handlers")
        .compile();
    warpmail_build::HandlerSet::new("echo", "bench_kernels/echo.cu", "bench_kernels/echo.cpp")
        .watch("bench_kernels")
        .compile();
    warpmail_build::compile_kernels("bench_kernels", "bench_kernels/bench.cu");
}
