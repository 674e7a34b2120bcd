//! Where temporary files go.

use std::path::PathBuf;

use crate::layers;

/// The directory for temporary files: `TMPDIR`, or `/tmp` where that is not set or empty.
pub fn temp_dir() -> PathBuf {
    layers::variable("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}
