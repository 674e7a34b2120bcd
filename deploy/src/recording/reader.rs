//! Reader of recordings, up to where a file is cut or damaged.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use super::format::{
    BLOCK_HEADER_BYTES, End, Entry, FORMAT_VERSION, Header, MAGIC, MAX_BLOCK_BYTES, MAX_HEADER_BYTES, Record,
    RecordingError, RecordingErrorKind, block_crc,
};

/// Yields every message up to the end, or up to where the file is cut or damaged: [`Reader::loss`] says which.
pub struct Reader<R> {
    input: R,
    header: Header,
    /// Bytes read.
    at: u64,
    /// The current block, unpacked, and how far it has been read.
    block: Vec<u8>,
    next: usize,
    end: Option<End>,
    loss: Option<RecordingError>,
}

impl Reader<BufReader<File>> {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// As [`Reader::new`], with the path.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let with_path = |kind, e: &dyn std::fmt::Display| RecordingError::new(kind, format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(|e| with_path(RecordingErrorKind::Io, &e))?;
        Reader::new(BufReader::new(file)).map_err(|e| with_path(e.kind(), &e))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`RecordingErrorKind::NotARecording`], [`RecordingErrorKind::Version`]; [`RecordingErrorKind::Cut`] and
    /// [`RecordingErrorKind::Damaged`] within the header, so that nothing can be read.
    pub fn new(mut input: R) -> Result<Self, RecordingError> {
        let not = |what: &str| RecordingError::new(RecordingErrorKind::NotARecording, what.to_owned());
        let first = line(&mut input)?;
        if MAGIC.as_bytes().starts_with(&first) {
            return Err(RecordingError::new(RecordingErrorKind::Cut, "cut within its header"));
        }
        let first = std::str::from_utf8(&first).ok().and_then(|l| l.strip_prefix(MAGIC));
        let first = first.ok_or_else(|| not("not a recording of `vidi record`"))?;
        let cut = || RecordingError::new(RecordingErrorKind::Cut, "cut within its header");
        let (version, rest) = first.split_once(' ').ok_or_else(cut)?;
        if version != FORMAT_VERSION.to_string() {
            let text = format!("a recording of version {version:?}; this program reads version {FORMAT_VERSION}");
            return Err(RecordingError::new(RecordingErrorKind::Version, text));
        }
        let crc = rest.strip_suffix('\n').ok_or_else(cut)?;
        let header = line(&mut input)?;
        let at = (MAGIC.len() + first.len() + header.len()) as u64;
        let json = header.strip_suffix(b"\n").ok_or_else(cut)?;
        let damaged = |what: String| RecordingError::new(RecordingErrorKind::Damaged, format!("header: {what}"));
        if crc != format!("{:08x}", crc32fast::hash(json)) {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        let header = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
        Ok(Reader { input, header, at, block: Vec::new(), next: 0, end: None, loss: None })
    }

    /// Header of the recording.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The closing entry; known once every message has been read.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Why there is no closing entry; known once every message that can be read has been.
    pub fn loss(&self) -> Option<&RecordingError> {
        self.loss.as_ref()
    }

    /// Everything that can be read, in memory.
    pub fn records(&mut self) -> Vec<Record> {
        self.collect()
    }

    fn entry(&mut self) -> Result<Entry, RecordingError> {
        if self.next == self.block.len() {
            self.read_block()?;
        }
        let mut rest = &self.block[self.next..];
        let entry = rmp_serde::from_read(&mut rest);
        self.next = self.block.len() - rest.len();
        entry.map_err(|e| self.damaged(&format!("an entry cannot be understood: {e}")))
    }

    fn read_block(&mut self) -> Result<(), RecordingError> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        let got = read_up_to(&mut self.input, &mut header)?;
        if got < BLOCK_HEADER_BYTES {
            return Err(self.cut());
        }
        let field = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (stored, raw, crc) = (field(0) as usize, field(4) as usize, field(8));
        if raw == 0 || raw > MAX_BLOCK_BYTES || stored > lz4_flex::block::get_maximum_output_size(raw) {
            return Err(self.damaged("a block has impossible lengths"));
        }
        // As long as the file backs it: a length alone takes no memory.
        let mut packed = Vec::new();
        let read = (&mut self.input).take(stored as u64).read_to_end(&mut packed);
        read.map_err(|e| RecordingError::new(RecordingErrorKind::Io, e.to_string()))?;
        if packed.len() < stored {
            return Err(self.cut());
        }
        if block_crc(&header[..8], &packed) != crc {
            return Err(self.damaged("a block's checksum does not match"));
        }
        let mut block = vec![0; raw];
        match lz4_flex::block::decompress_into(&packed, &mut block) {
            Ok(n) if n == raw => {}
            Ok(n) => return Err(self.damaged(&format!("a block unpacks to {n} bytes instead of {raw}"))),
            Err(e) => return Err(self.damaged(&e.to_string())),
        }
        self.at += (BLOCK_HEADER_BYTES + stored) as u64;
        (self.block, self.next) = (block, 0);
        Ok(())
    }

    fn cut(&self) -> RecordingError {
        let text = format!("cut: whole up to byte {}, without its closing entry", self.at);
        RecordingError::new(RecordingErrorKind::Cut, text)
    }

    fn damaged(&self, what: &str) -> RecordingError {
        let text = format!("damaged: whole up to byte {}, then {what}", self.at);
        RecordingError::new(RecordingErrorKind::Damaged, text)
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.end.is_some() || self.loss.is_some() {
            return None;
        }
        match self.entry() {
            Ok(Entry::Message(record)) => return Some(record),
            Ok(Entry::End(end)) => match read_up_to(&mut self.input, &mut [0]) {
                Ok(0) if self.next == self.block.len() => self.end = Some(end),
                _ => self.loss = Some(self.damaged("something follows the closing entry")),
            },
            Err(loss) => self.loss = Some(loss),
        }
        None
    }
}

/// A line with its end, or what there is of it.
fn line(input: &mut impl BufRead) -> Result<Vec<u8>, RecordingError> {
    let mut line = Vec::new();
    let read = input.take(MAX_HEADER_BYTES).read_until(b'\n', &mut line);
    read.map_err(|e| RecordingError::new(RecordingErrorKind::Io, e.to_string()))?;
    Ok(line)
}

/// Fills `buffer` as far as there is input.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, RecordingError> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(RecordingError::new(RecordingErrorKind::Io, e.to_string())),
        }
    }
    Ok(got)
}
