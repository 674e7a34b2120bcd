//! Compiles the CUDA kernels, if asked for.

include!("../common/kernels/nvcc.rs");

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo:rerun-if-changed=../common/kernels/e4m3.cuh");
        fatbins("kernels");
    }
}
