//! Fingerprint of a checkpoint: processes whose fingerprints differ have other weights.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::sections::ModelSource;

/// Bytes of each sample of a file: of its start, middle and end.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Bytes of the hash that a fingerprint shows.
const SHOWN: usize = 8;

impl ModelSource {
    /// Fingerprint of the weights, 16 hexadecimal digits: of config.json and of every .safetensors file its name, size, and
    /// first, middle and last 64 KiB; of random weights, of what they are called. Empty without a checkpoint.
    ///
    /// # Errors
    /// The file system's, with the file.
    pub fn fingerprint(&self) -> Result<String, String> {
        let mut hash = Sha256::new();
        match self.weights {
            Some(weights) => hash.update(weights.to_string()),
            None if self.dir.as_os_str().is_empty() => return Ok(String::new()),
            None => {
                for file in files(&self.dir).map_err(|e| format!("{}: {e}", self.dir.display()))? {
                    sample(&file, &mut hash).map_err(|e| format!("{}: {e}", file.display()))?;
                }
            }
        }
        Ok(shown(hash.finalize().as_slice()))
    }
}

/// Fingerprint of one file, 16 hexadecimal digits: of its size, and its first, middle and last 64 KiB, whatever its name.
///
/// # Errors
/// The file system's, with the file.
pub fn of_file(path: &Path) -> Result<String, String> {
    let mut hash = Sha256::new();
    content(path, &mut hash).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(shown(hash.finalize().as_slice()))
}

fn shown(hash: &[u8]) -> String {
    hash.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect()
}

/// Files of a checkpoint that the weights are in, and the one that says what they mean.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let weights = path.extension().is_some_and(|e| e == "safetensors");
        if weights || path.file_name().is_some_and(|name| name == "config.json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn sample(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
    content(path, hash)
}

fn content(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(size.to_le_bytes());
    let length = SAMPLE_BYTES.min(size);
    let mut sample = vec![0; length as usize];
    for start in [0, (size - length) / 2, size - length] {
        file.read_exact_at(&mut sample, start)?;
        hash.update(&sample);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_one_fingerprint_wherever_they_lie_and_others_have_another() {
        let [here, there] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let of = |dir: &Path| ModelSource { dir: dir.to_owned(), weights: None }.fingerprint().unwrap();
        let mut weights = vec![7u8; 300_000];
        for dir in [&here, &there] {
            std::fs::write(dir.path().join("config.json"), "{}").unwrap();
            std::fs::write(dir.path().join("model.safetensors"), &weights).unwrap();
        }
        std::fs::write(there.path().join("notes.txt"), "not part of it").unwrap();
        let first = of(here.path());
        assert_eq!((first.len(), &first), (2 * SHOWN, &of(there.path())));
        for place in [0, 150_000, 299_999] {
            weights[place] ^= 1;
            std::fs::write(there.path().join("model.safetensors"), &weights).unwrap();
            assert_ne!(of(there.path()), first, "byte {place}");
            weights[place] ^= 1;
        }
        std::fs::write(there.path().join("model.safetensors"), &weights).unwrap();
        std::fs::write(there.path().join("config.json"), "{ }").unwrap();
        assert_ne!(of(there.path()), first);
        let random = |size: &str| ModelSource { dir: PathBuf::new(), weights: Some(size.parse().unwrap()) };
        assert_ne!(random("random:tiny").fingerprint(), random("random:realdims").fingerprint());
        assert_eq!(ModelSource::default().fingerprint().as_deref(), Ok(""));
        // One file by itself: by what it holds.
        let [copy, other] = ["copy", "other"].map(|name| there.path().join(name));
        std::fs::copy(here.path().join("model.safetensors"), &copy).unwrap();
        std::fs::write(&other, &weights[1..]).unwrap();
        let weights = of_file(&here.path().join("model.safetensors"));
        assert!(weights == of_file(&copy) && weights != of_file(&other) && of_file(&here.path().join("none")).is_err());
    }
}
