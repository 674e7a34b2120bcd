//! Choice of the daemon: one of our own, one that is there, or none.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use config::{Config, Device};
use protocol::error::StageName;
use runtime::process::{Exit, Fatal};

use super::home::{DEFAULT_PIPES, PIPES, PROGRAM, serves};
use crate::up::replicas::devices;

/// Daemon that the stages share a GPU by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One of our own, with the control program.
    Own(PathBuf),
    /// One that somebody else has started, and ends: the directory of its sockets.
    Existing(PathBuf),
}

/// The daemon to use; none unless the configuration asks for one. Nothing is started here.
///
/// # Errors
/// [`Exit::Usage`]: stages that share no GPU, and no control program.
pub fn choose(config: &Config, replicas: &[(StageName, usize)], one_process: bool) -> Result<Option<Choice>, Fatal> {
    if !config.up.mps {
        return Ok(None);
    }
    let usage = |text: String| Fatal(Exit::Usage, text);
    if one_process {
        let text = "--mps (up.mps) and --one-process exclude each other: one process shares its GPU with none; leave one of them out";
        return Err(usage(text.to_owned()));
    }
    if devices(config, replicas).iter().all(|&device| device == Device::Cpu) {
        let text = "--mps (up.mps) shares a GPU, and no stage computes on one: set compute.device = \"cuda\" (or --profile), or leave it out";
        return Err(usage(text.to_owned()));
    }
    let named = std::env::var_os(PIPES).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    daemon(named.as_deref(), Path::new(DEFAULT_PIPES), &path).map(Some).map_err(usage)
}

/// The daemon that serves where the environment says or else where it does by default; else the control program in `path`.
fn daemon(named: Option<&Path>, default: &Path, path: &OsStr) -> Result<Choice, String> {
    if let Some(there) = [named, Some(default)].into_iter().flatten().find(|pipes| serves(pipes)) {
        return Ok(Choice::Existing(there.to_owned()));
    }
    if let Some(named) = named {
        tracing::warn!("no MPS daemon serves in {} ({PIPES}): starting one, which the stages use", named.display());
    }
    let program = std::env::split_paths(path).map(|dir| dir.join(PROGRAM)).find(|program| program.is_file());
    program.map(Choice::Own).ok_or_else(|| {
        format!(
            "no {PROGRAM} in PATH, which --mps (up.mps) starts: it comes with NVIDIA's driver (package nvidia-cuda-mps of Debian, \
             nvidia-compute-utils of Ubuntu): install it, or leave --mps out"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn chosen(set: &[&str], one_process: bool) -> Result<Option<Choice>, Fatal> {
        let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        let config = Config::load(None, [], &set).unwrap();
        choose(&config, &StageName::ALL.map(|stage| (stage, 1)), one_process)
    }

    #[test]
    fn what_shares_no_gpu_is_refused_by_name_and_nothing_is_chosen_unless_it_is_asked_for() {
        assert_eq!(chosen(&["compute.device=cuda"], false).unwrap(), None);
        let Fatal(exit, said) = chosen(&["up.mps=true"], false).unwrap_err();
        assert!(exit == Exit::Usage && said.contains("--mps (up.mps)") && said.contains("compute.device"), "{said}");
        let Fatal(exit, said) = chosen(&["up.mps=true", "compute.device=cuda"], true).unwrap_err();
        assert!(exit == Exit::Usage && said.contains("--one-process"), "{said}");
    }

    #[test]
    fn a_daemon_that_serves_is_used_and_else_the_program_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let below = |name: &str| {
            let below = dir.path().join(name);
            std::fs::create_dir(&below).unwrap();
            below
        };
        let [named, default, empty, bin] = ["named", "default", "empty", "bin"].map(below);
        let path = std::env::join_paths([&empty, &bin]).unwrap();
        let said = daemon(None, &default, &path).unwrap_err();
        for words in [PROGRAM, "NVIDIA's driver", "leave --mps out"] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }
        let program = bin.join(PROGRAM);
        std::fs::write(&program, "").unwrap();
        assert_eq!(daemon(Some(&named), &default, &path).unwrap(), Choice::Own(program));
        let _default = UnixListener::bind(default.join("control")).unwrap();
        assert_eq!(daemon(Some(&named), &default, &path).unwrap(), Choice::Existing(default.clone()));
        let _named = UnixListener::bind(named.join("control")).unwrap();
        assert_eq!(daemon(Some(&named), &default, &path).unwrap(), Choice::Existing(named));
    }
}
