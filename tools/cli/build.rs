//! Compiles the handler set.

fn main() {}
