//! Writer of arrays in numpy's file format, version 1.0, row by row.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use config::replace::Unfinished;

/// Size of magic, version, length and header together: enough for any number of rows, and a multiple of 64.
const HEADER_BYTES: usize = 128;

/// Element type of an array file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Unsigned bytes.
    U8,
    /// Little-endian IEEE single precision.
    F32,
}

/// Array file that grows row by row; [`NpyWriter::finish`] writes its header and gives it its name.
pub struct NpyWriter {
    unfinished: Unfinished,
    file: BufWriter<File>,
    element: Element,
    row_shape: Vec<usize>,
    rows: u64,
}

impl NpyWriter {
    /// A file that is to be called `path`, with rows of `row_shape`; an empty shape makes a flat array.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: &Path, element: Element, row_shape: &[usize]) -> io::Result<Self> {
        let mut unfinished = Unfinished::begin(path)?;
        let mut file = BufWriter::new(unfinished.file().try_clone()?);
        file.write_all(&[b' '; HEADER_BYTES])?;
        Ok(NpyWriter { unfinished, file, element, row_shape: row_shape.to_vec(), rows: 0 })
    }

    /// Adds whole rows, given as little-endian bytes.
    ///
    /// # Errors
    /// The file system's, and `InvalidInput` when `bytes` is not a whole number of rows.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let element = if self.element == Element::U8 { 1 } else { 4 };
        let row = self.row_shape.iter().product::<usize>() * element;
        if row == 0 || !bytes.len().is_multiple_of(row) {
            let text = format!("{} bytes are not whole rows of {row}", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.rows += (bytes.len() / row) as u64;
        self.file.write_all(bytes)
    }

    /// Adds 16-bit samples as `sample / 32768` (MODEL.md 2.3).
    ///
    /// # Errors
    /// As [`NpyWriter::append`].
    pub fn append_pcm(&mut self, samples: &[i16]) -> io::Result<()> {
        let bytes: Vec<u8> = samples.iter().flat_map(|&s| (f32::from(s) / 32768.0).to_le_bytes()).collect();
        self.append(&bytes)
    }

    /// Writes the header, and gives the file its name; returns how many rows it holds.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(mut self) -> io::Result<u64> {
        let descr = if self.element == Element::U8 { "|u1" } else { "<f4" };
        let mut shape = format!("({},", self.rows);
        self.row_shape.iter().for_each(|d| shape.push_str(&format!(" {d},")));
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}), }}");
        let capacity = HEADER_BYTES - 10;
        if text.len() >= capacity {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the header {text} exceeds {capacity} bytes"),
            ));
        }
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend((capacity as u16).to_le_bytes());
        header.extend(format!("{text:<width$}\n", width = capacity - 1).bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        self.file.flush()?;
        self.unfinished.finish()?;
        Ok(self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_file_has_the_header_that_numpy_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frames.npy");
        let mut npy = NpyWriter::create(&path, Element::U8, &[2, 2]).unwrap();
        assert!(!path.exists(), "not before it is whole");
        npy.append(&[1, 2, 3, 4]).unwrap();
        npy.append(&[5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
        assert!(npy.append(&[0; 3]).is_err());
        assert_eq!(npy.finish().unwrap(), 3);

        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let header = std::str::from_utf8(&bytes[10..128]).unwrap();
        assert!(header.starts_with("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 2, 2,), }"));
        assert!(header.ends_with(" \n"));
        assert_eq!(&bytes[128..], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn audio_is_written_as_fractions_of_full_scale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pcm.npy");
        let mut npy = NpyWriter::create(&path, Element::F32, &[]).unwrap();
        npy.append_pcm(&[0, 16384, i16::MIN]).unwrap();
        assert_eq!(npy.finish().unwrap(), 3);
        let bytes = std::fs::read(&path).unwrap();
        let values: Vec<f32> = bytes[128..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values, [0.0, 0.5, -1.0]);
    }
}
