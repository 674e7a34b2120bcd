//! The checkpoint that ships with the project, by the name `demo`.

use std::path::{Path, PathBuf};

use config::layers;

/// What stands for its directory on a command line and in a configuration. A directory of that name is `./demo`.
pub const NAME: &str = "demo";
/// Its directory's own name.
const DIRECTORY: &str = "demo-model";
/// Environment variable with the directory that holds it.
const SHARE: &str = "VIDI_SHARE";

/// The directory that a path means: the shipped checkpoint's for `demo`, else the path as it is.
///
/// # Errors
/// Every directory that was looked into, if it is in none.
pub fn resolve(model: &Path) -> Result<PathBuf, String> {
    if model != Path::new(NAME) {
        return Ok(model.to_owned());
    }
    let share = layers::variable(SHARE).map(PathBuf::from);
    first_of(&places(share, std::env::current_exe().ok().as_deref()))
}

/// Where it may be, best first: where the environment says and nowhere else; where an installation puts it; beside the
/// executable; in the sources that this program was built from.
fn places(share: Option<PathBuf>, program: Option<&Path>) -> Vec<PathBuf> {
    if let Some(share) = share {
        return vec![share.join(DIRECTORY)];
    }
    let mut found = Vec::new();
    if let Some(directory) = program.and_then(Path::parent) {
        found.extend(directory.parent().map(|prefix| prefix.join("share/vidi").join(DIRECTORY)));
        found.push(directory.join(DIRECTORY));
    }
    found.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(DIRECTORY));
    found
}

fn first_of(places: &[PathBuf]) -> Result<PathBuf, String> {
    places.iter().find(|place| place.join("config.json").is_file()).cloned().ok_or_else(|| {
        let tried: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!(
            "the demo model is not there: no config.json in {}; set {SHARE} to the directory that holds {DIRECTORY}, or give \
             --model DIR",
            tried.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bare_name_means_the_shipped_checkpoint() {
        for path in ["./demo", "/m/demo", "demo-model", ""] {
            assert_eq!(resolve(Path::new(path)).unwrap(), Path::new(path));
        }
    }

    #[test]
    fn the_environment_decides_alone_and_an_installation_comes_before_the_sources() {
        let program = Path::new("/usr/local/bin/vidi");
        let [installed, beside, sources] = &places(None, Some(program))[..] else { panic!() };
        assert_eq!(installed, Path::new("/usr/local/share/vidi/demo-model"));
        assert_eq!(beside, Path::new("/usr/local/bin/demo-model"));
        assert!(sources.ends_with("deploy/demo-model"));
        assert_eq!(places(Some("/opt/vidi".into()), Some(program)), [Path::new("/opt/vidi/demo-model")]);
    }

    #[test]
    fn a_place_counts_once_a_checkpoint_is_there_and_else_all_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("a"), dir.path().join("b"));
        let places = [empty.clone(), full.clone()];
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::create_dir_all(&full).unwrap();
        let said = first_of(&places).unwrap_err();
        assert!(places.iter().all(|place| said.contains(&*place.to_string_lossy())) && said.contains(SHARE), "{said}");
        std::fs::write(full.join("config.json"), "{}").unwrap();
        assert_eq!(first_of(&places).unwrap(), full);
    }
}
