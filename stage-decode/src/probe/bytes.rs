//! Reads by position: media data is skipped, and memory does not grow with the file.

use std::io;

use crate::media_file::MediaFile;

/// Size of the chunk that one read fetches; neighbouring positions are served from it.
const CHUNK_BYTES: usize = 4096;

/// Number of steps that the index of a file may take to read: rows of tables, samples, boxes. Ten hours of video at 60
/// pictures per second with audio take ten million; this many take about a second.
const MAX_STEPS: u64 = 1 << 27;

/// Steps between two looks at whether anybody still waits.
const STEPS_PER_LOOK: u64 = 1 << 16;

/// Reader of a file by position, within a budget of work, until nobody waits for it.
pub(crate) struct Bytes<'f> {
    media: &'f MediaFile,
    cancelled: &'f dyn Fn() -> bool,
    /// Steps that are left.
    steps: u64,
    size: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl<'f> Bytes<'f> {
    pub(crate) fn new(media: &'f MediaFile, cancelled: &'f dyn Fn() -> bool) -> io::Result<Self> {
        let size = media.file().metadata()?.len();
        Ok(Bytes { media, cancelled, steps: MAX_STEPS, size, chunk: Vec::new(), chunk_at: 0 })
    }

    /// Size of the file in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes steps from the budget.
    ///
    /// # Errors
    /// If fewer are left, or nobody waits for the file any more.
    pub(crate) fn spend(&mut self, steps: u64) -> io::Result<()> {
        let left = self.steps.checked_sub(steps).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("it takes more than {MAX_STEPS} steps to read"))
        })?;
        if left / STEPS_PER_LOOK != self.steps / STEPS_PER_LOOK {
            self.media.reading().step();
            if (self.cancelled)() {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        self.steps = left;
        Ok(())
    }

    /// Fills `out` with the bytes from position `at` on.
    pub(crate) fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if out.len() > CHUNK_BYTES {
            return self.media.read_exact_at(out, at);
        }
        if at < self.chunk_at || end > self.chunk_at + self.chunk.len() as u64 {
            let length = CHUNK_BYTES.min((self.size - at) as usize);
            self.chunk.resize(length, 0);
            self.media.read_exact_at(&mut self.chunk, at)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> MediaFile {
        MediaFile::new("empty".into(), tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn work_beyond_the_budget_is_refused_with_the_figure() {
        let file = empty();
        let mut bytes = Bytes::new(&file, &|| false).unwrap();
        bytes.spend(MAX_STEPS - 1).unwrap();
        bytes.spend(1).unwrap();
        let error = bytes.spend(1).unwrap_err();
        assert!(error.to_string().contains("134217728 steps"), "{error}");
    }

    #[test]
    fn work_that_nobody_waits_for_ends_within_a_few_steps() {
        let file = empty();
        let stop = std::cell::Cell::new(false);
        let cancelled = || stop.get();
        let mut bytes = Bytes::new(&file, &cancelled).unwrap();
        (0..3 * STEPS_PER_LOOK).for_each(|_| bytes.spend(1).unwrap());
        stop.set(true);
        let after = (0..2 * STEPS_PER_LOOK).take_while(|_| bytes.spend(1).is_ok()).count() as u64;
        assert!(after <= STEPS_PER_LOOK, "{after} steps");
    }
}
