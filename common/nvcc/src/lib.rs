//! Compiles CUDA kernels in build scripts, so that every crate with kernels of its own compiles them alike, and watches
//! every file that they are made of.

#![expect(clippy::print_stdout, reason = "cargo reads the standard output of build scripts")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles every `.cu` in `folder` (relative to the crate) to `OUT_DIR/<name>.fatbin`: machine code for sm_89 and
/// sm_90, and PTX of compute_89 that the driver translates for any newer GPU. A change to a kernel or to any header that
/// it includes, in whichever crate that header is, runs the build script again.
///
/// # Panics
/// Without nvcc, with a kernel that does not compile, or with a header that does not exist: there is nothing to build then.
pub fn fatbins(folder: &str) {
    // A kernel that is added or removed changes the folder itself.
    println!("cargo:rerun-if-changed={folder}");
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let sources = sources(Path::new(folder));
    for source in &sources {
        for file in files_of(source) {
            println!("cargo:rerun-if-changed={}", file.display());
        }
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    for source in sources {
        let fatbin = out.join(source.file_stem().expect("a file has a name")).with_extension("fatbin");
        let status = Command::new(&nvcc)
            .args(["-O3", "-std=c++17", "--expt-relaxed-constexpr", "--threads=0"])
            .args(["-Xptxas", "-warn-spills"])
            .args(["-gencode=arch=compute_89,code=sm_89", "-gencode=arch=compute_90,code=sm_90"])
            .arg("-gencode=arch=compute_89,code=compute_89")
            .arg("--fatbin")
            .arg("-o")
            .args([&fatbin, &source])
            .status()
            .unwrap_or_else(|e| {
                panic!(
                    "{} does not start ({e}): the feature cuda needs the CUDA toolkit, set CUDA_HOME",
                    nvcc.display()
                )
            });
        assert!(status.success(), "nvcc refuses {}", source.display());
    }
}

/// The compiler. Not the variable NVCC: what builds candle's kernels may be a wrapper that swaps the architectures.
fn nvcc() -> PathBuf {
    ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .chain([OsString::from("/usr/local/cuda")])
        .map(|home| Path::new(&home).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}

/// Every `.cu` file of a folder, by name.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("no kernels in {}: {e}", folder.display()))
        .map(|entry| entry.expect("a folder that can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources
}

/// The files that a kernel is made of: itself, and every header that it includes in quotation marks, directly or through
/// another header. Headers of the toolkit stand in angle brackets and are left out.
fn files_of(source: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut unread = vec![source.to_owned()];
    while let Some(file) = unread.pop() {
        let file = file.canonicalize().unwrap_or_else(|e| panic!("{} cannot be read: {e}", file.display()));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{} cannot be read: {e}", file.display()));
        let folder = file.parent().expect("a file is in a folder");
        unread.extend(text.lines().filter_map(included).map(|header| folder.join(header)));
        files.insert(file);
        unread.retain(|file| file.canonicalize().map_or(true, |file| !files.contains(&file)));
    }
    files
}

/// The header that a line includes in quotation marks.
fn included(line: &str) -> Option<&str> {
    let directive = line.trim_start().strip_prefix('#')?.trim_start();
    directive.strip_prefix("include")?.trim_start().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the files of all kernels in a folder of this workspace.
    fn watched(folder: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
        let files = sources(&folder).iter().flat_map(|source| files_of(source)).collect::<BTreeSet<_>>();
        files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn headers_that_another_crates_header_includes_are_watched() {
        let files = watched("stage-llm/kernels");
        for name in ["gemv.cu", "warp.cuh", "e4m3.cuh", "order.cuh", "quick.cuh"] {
            assert!(files.contains(name), "{name} is not among {files:?}");
        }
    }

    #[test]
    fn every_header_that_stands_beside_a_kernel_is_watched() {
        for folder in ["common/compute/kernels", "stage-llm/kernels"] {
            let files = watched(folder);
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
            for entry in std::fs::read_dir(path).unwrap() {
                let name = entry.unwrap().file_name().to_string_lossy().into_owned();
                assert!(files.contains(&name), "{folder}/{name}: no kernel is made of it, or it is not watched");
            }
        }
    }

    #[test]
    fn only_headers_in_quotation_marks_are_followed() {
        assert_eq!(included("#include \"warp.cuh\""), Some("warp.cuh"));
        assert_eq!(included("  #  include   \"../a/b.cuh\" // why"), Some("../a/b.cuh"));
        for line in ["#include <cuda_fp16.h>", "// #include \"warp.cuh\"", "#define include \"x\"", "include \"x\""] {
            assert_eq!(included(line), None, "{line}");
        }
    }
}
