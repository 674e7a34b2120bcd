//! Writer of recordings, block by block.

use std::io::{self, Write};

use super::format::{BLOCK_HEADER_BYTES, Entry, FORMAT_VERSION, Header, MAGIC, MAX_BLOCK_BYTES, block_crc};

/// Size at which a block is packed: enough to find repetitions in, little enough to lose.
const BLOCK_BYTES: usize = 1 << 20;

/// Appends entries. What was pushed since the last [`Writer::flush`] is lost when the process is.
pub struct Writer<W> {
    out: W,
    /// Entries that are not in a block yet.
    pending: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts a recording.
    ///
    /// # Errors
    /// The output's.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let header = serde_json::to_string(header).map_err(io::Error::other)?;
        let text = format!("{MAGIC}{FORMAT_VERSION} {:08x}\n{header}\n", crc32fast::hash(header.as_bytes()));
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(Writer { out, pending: Vec::new(), written: text.len() as u64 })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The output's; an entry larger than any block.
    pub fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let entry = rmp_serde::to_vec_named(entry).map_err(io::Error::other)?;
        if entry.len() > MAX_BLOCK_BYTES {
            let text = format!("a message of {} bytes; a recording holds up to {MAX_BLOCK_BYTES}", entry.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if self.pending.len() + entry.len() > MAX_BLOCK_BYTES {
            self.flush()?;
        }
        self.pending.extend(entry);
        if self.pending.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is pending, as one block.
    ///
    /// # Errors
    /// The output's.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.pending);
        let mut block = vec![0; BLOCK_HEADER_BYTES + lz4_flex::block::get_maximum_output_size(raw.len())];
        let (header, packed) = block.split_at_mut(BLOCK_HEADER_BYTES);
        let stored = lz4_flex::block::compress_into(&raw, packed).map_err(io::Error::other)?;
        header[..4].copy_from_slice(&(stored as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        let crc = block_crc(&header[..8], &packed[..stored]);
        header[8..].copy_from_slice(&crc.to_le_bytes());
        // One write: a reader of a file that still grows sees whole blocks, or at worst one cut one.
        self.out.write_all(&block[..BLOCK_HEADER_BYTES + stored])?;
        self.out.flush()?;
        self.written += (BLOCK_HEADER_BYTES + stored) as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes what is pending and gives the output back.
    ///
    /// # Errors
    /// The output's.
    pub fn into_inner(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.out)
    }
}
