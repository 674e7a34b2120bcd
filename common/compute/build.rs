//! Compiles the CUDA kernels, if asked for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        nvcc::fatbins("kernels");
    }
}
