//! Reads by position: media data is skipped, and memory does not grow with the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Size of the chunk that one read fetches; neighbouring positions are served from it.
const CHUNK_BYTES: usize = 4096;

/// Reader of a file by position.
pub(crate) struct Bytes<'f> {
    file: &'f File,
    size: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl<'f> Bytes<'f> {
    pub(crate) fn new(file: &'f File) -> io::Result<Self> {
        Ok(Bytes { file, size: file.metadata()?.len(), chunk: Vec::new(), chunk_at: 0 })
    }

    /// Size of the file in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `out` with the bytes from position `at` on.
    pub(crate) fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if out.len() > CHUNK_BYTES {
            return self.file.read_exact_at(out, at);
        }
        if at < self.chunk_at || end > self.chunk_at + self.chunk.len() as u64 {
            let length = CHUNK_BYTES.min((self.size - at) as usize);
            self.chunk.resize(length, 0);
            self.file.read_exact_at(&mut self.chunk, at)?;
            self.chunk_at = at;
        }
        let from = (at - self.chunk_at) as usize;
        out.copy_from_slice(&self.chunk[from..from + out.len()]);
        Ok(())
    }

    /// The `N` bytes from position `at` on.
    pub(crate) fn array<const N: usize>(&mut self, at: u64) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        self.read(at, &mut out)?;
        Ok(out)
    }

    /// The big-endian number of four bytes at position `at`.
    pub(crate) fn u32(&mut self, at: u64) -> io::Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    /// The big-endian number of eight bytes at position `at`.
    pub(crate) fn u64(&mut self, at: u64) -> io::Result<u64> {
        self.array(at).map(u64::from_be_bytes)
    }
}
