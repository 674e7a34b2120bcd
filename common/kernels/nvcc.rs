// Compiles CUDA kernels at build time. Not a module of any crate: build scripts `include!` it, so that every crate
// with kernels of its own compiles them alike.

/// Compiles every `.cu` in `folder` (relative to the crate) to `OUT_DIR/<name>.fatbin`: machine code for sm_89 and
/// sm_90, and PTX of compute_89 that the driver translates for any newer card. A folder's `.cuh` files are theirs to
/// include.
///
/// # Panics
/// Without nvcc, or with kernels that do not compile: there is nothing to build then.
pub fn fatbins(folder: &str) {
    println!("cargo:rerun-if-changed={folder}");
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Not NVCC: what builds candle's kernels may be a wrapper that swaps the architectures.
    let nvcc = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .chain([std::ffi::OsString::from("/usr/local/cuda")])
        .map(|home| std::path::Path::new(&home).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into());
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("no kernels in {folder}: {e}"))
        .map(|entry| entry.expect("a folder that can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    for source in sources {
        let fatbin = out.join(source.file_stem().expect("a file has a name")).with_extension("fatbin");
        let status = std::process::Command::new(&nvcc)
            .args(["-O3", "-std=c++17", "--expt-relaxed-constexpr", "--threads=0"])
            .args(["-Xptxas", "-warn-spills"])
            .args(["-gencode=arch=compute_89,code=sm_89", "-gencode=arch=compute_90,code=sm_90"])
            .arg("-gencode=arch=compute_89,code=compute_89")
            .arg("--fatbin")
            .arg("-o")
            .args([&fatbin, &source])
            .status()
            .unwrap_or_else(|e| {
                panic!("{} does not start ({e}): the feature cuda needs the CUDA toolkit, set CUDA_HOME", nvcc.display())
            });
        assert!(status.success(), "nvcc refuses {}", source.display());
    }
}
