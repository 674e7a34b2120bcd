//! Commands that the tests run.

use std::path::PathBuf;

use anyhow::Context;

/// Path of the built `vidi` command, beside the test executables or in the directory above.
///
/// # Errors
/// If it has not been built.
pub fn vidi() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("vidi")).find(|vidi| vidi.is_file());
    beside.with_context(|| format!("cannot find vidi beside {}: run cargo build --workspace --bins", own.display()))
}
