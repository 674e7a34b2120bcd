//! This program again, as a child process.

use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use config::layers;
use tokio::process::Command;

/// This program, without the variables of its configuration: that is merged, and a child has no use for what it was merged from.
///
/// # Errors
/// When the system does not say which program this is.
pub fn vidi() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("own executable")?);
    let ours = std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(layers::PREFIX.as_bytes()));
    for (name, _) in ours {
        command.env_remove(name);
    }
    Ok(command)
}
