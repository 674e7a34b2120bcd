//! Directories that a demo model may be written to: new ones, empty ones, and those of an earlier demo model.

use std::fs;
use std::path::Path;

use model::config_json::Family;
use serde::{Deserialize, Serialize};

use super::Error;
use super::shards::{INDEX_FILE, Shard};

/// Name of the file that marks a directory as a demo model's, and lists the files that belong to it.
const MARKER_FILE: &str = "demo_model.json";

#[derive(Serialize, Deserialize)]
struct Marker {
    note: String,
    seed: u64,
    files: Vec<String>,
}

/// Makes `dir` ready for `shards`: the files of an earlier demo model go, and a new marker stands before the first
/// of the new files, so that an interrupted write can be repeated.
///
/// # Errors
/// [`Error::Occupied`] if there are files and no marker; nothing is touched then.
pub fn claim(dir: &Path, family: Family, shards: &[Shard], seed: u64) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let marker = dir.join(MARKER_FILE);
    if marker.exists() {
        remove_earlier(dir, &marker)?;
    } else if fs::read_dir(dir).map_err(Error::io("read", dir))?.next().is_some() {
        return Err(Error::Occupied(dir.to_owned()));
    }
    let fixed = ["config.json", "tokenizer.json", "tokenizer_config.json", INDEX_FILE];
    let files = fixed.into_iter().map(str::to_owned).chain(shards.iter().map(|s| s.file.clone())).collect();
    let real = match family {
        Family::Gemma2 => "Vidi 1.5",
        Family::Mistral => "Vidi 7B",
    };
    let note = format!("Random weights, written by `vidi`. Not {real}: its answers mean nothing.");
    let text = serde_json::to_string_pretty(&Marker { note, seed, files }).expect("a marker is plain JSON");
    write_text(dir, MARKER_FILE, &(text + "\n"))
}

/// Removes what the marker names. Names with a path in them are left alone: only files of this directory are ours.
fn remove_earlier(dir: &Path, marker: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(marker).map_err(Error::io("read", marker))?;
    let earlier: Marker = serde_json::from_str(&text).map_err(|_| Error::Occupied(dir.to_owned()))?;
    for name in earlier.files.iter().filter(|name| Path::new(name).file_name().is_some_and(|f| f == name.as_str())) {
        let path = dir.join(name);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Writes a small file.
pub fn write_text(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = dir.join(name);
    fs::write(&path, text).map_err(Error::io("write", &path))
}
