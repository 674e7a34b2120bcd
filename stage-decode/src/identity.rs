//! Identity of a file's content without reading all of it.

use std::io;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use crate::media_file::MediaFile;

/// Size of each sample of the content: start, middle and end.
const SAMPLE_BYTES: u64 = 64 * 1024;

/// Content identity: `sampled:` and the hex SHA-256 of size (u64), modification time (seconds and nanoseconds, i64 each, all
/// little-endian), and the first, middle and last 64 KiB.
///
/// # Errors
/// The file system's.
pub(crate) fn content_id(media: &MediaFile) -> io::Result<String> {
    let meta = media.file().metadata()?;
    let size = meta.len();
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    hash.update(meta.mtime().to_le_bytes());
    hash.update(meta.mtime_nsec().to_le_bytes());
    let length = SAMPLE_BYTES.min(size);
    let mut sample = vec![0; length as usize];
    for start in [0, (size - length) / 2, size - length] {
        media.read_exact_at(&mut sample, start)?;
        hash.update(&sample);
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("sampled:{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_or_another_length_is_another_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let id = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let file = std::fs::File::options().write(true).read(true).open(&path).unwrap();
            file.set_modified(when).unwrap();
            content_id(&MediaFile::new(path.clone(), file).unwrap()).unwrap()
        };
        let mut bytes = vec![7; 300_000];
        let first = id(&bytes);
        assert!(first.starts_with("sampled:") && first.len() == 8 + 64);
        assert_eq!(id(&bytes), first);
        bytes[150_000] = 8;
        assert_ne!(id(&bytes), first);
        bytes[150_000] = 7;
        assert_ne!(id(&bytes[..299_999]), first);
        assert!(id(&[]).starts_with("sampled:"));
    }
}
