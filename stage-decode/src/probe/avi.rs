//! The last chunk of an AVI file that is cut short (Microsoft, AVI RIFF File Reference).
//!
//! GStreamer's demuxer ends where a chunk is longer than what is left of the file, and leaves out what lies before it and is shown
//! later. ffmpeg takes as much of that chunk as there is; so does the demuxer when the chunk says that it is no longer.

use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;

/// Bytes of a chunk's header: its name, and the size of its content.
const HEADER: u64 = 8;
/// Bytes of the header of a list, which has the name of its kind besides.
const LIST_HEADER: u64 = 12;
/// Lists whose chunks are read one by one: the media, and those of one moment among them.
const OPEN: [&[u8; 4]; 2] = [b"movi", b"rec "];

/// The size that the last chunk has in the file; none for another format, or where no chunk is cut.
///
/// # Errors
/// That of a read, and too many chunks.
pub(super) fn cut_chunk(bytes: &mut Bytes<'_>) -> io::Result<Option<Overlay>> {
    let mut at = 0;
    // A file of more than a gigabyte has several of these one behind the other.
    while at + LIST_HEADER <= bytes.size() && &bytes.array::<4>(at)? == b"RIFF" {
        let kind = bytes.array(at + HEADER)?;
        if ![b"AVI ", b"AVIX"].contains(&&kind) {
            return Ok(None);
        }
        let size = size(bytes, at)?;
        let end = end(at, size);
        bytes.spend(1)?;
        // Who writes it tells the size at last.
        if size == 0 || end > bytes.size() {
            return last_chunk(bytes, at + LIST_HEADER);
        }
        at = end + size % 2;
    }
    Ok(None)
}

/// The size that the last of the chunks from a position on has in the file, if it holds media and is cut.
fn last_chunk(bytes: &mut Bytes<'_>, mut at: u64) -> io::Result<Option<Overlay>> {
    while at + HEADER <= bytes.size() {
        bytes.spend(1)?;
        if at + LIST_HEADER <= bytes.size() && &bytes.array::<4>(at)? == b"LIST" {
            let kind = bytes.array(at + HEADER)?;
            if OPEN.contains(&&kind) {
                at += LIST_HEADER;
                continue;
            }
        }
        let (name, size) = (bytes.array::<4>(at)?, size(bytes, at)?);
        let there = bytes.size() - at - HEADER;
        if size > there {
            // An index that is cut is none.
            if !name[..2].iter().all(u8::is_ascii_digit) {
                return Ok(None);
            }
            let there = u32::try_from(there).unwrap_or(u32::MAX);
            return Ok(Some(Overlay { at: at + 4, bytes: there.to_le_bytes().to_vec() }));
        }
        at = end(at, size) + size % 2;
    }
    Ok(None)
}

/// Size of the content of the chunk at a position.
fn size(bytes: &mut Bytes<'_>, at: u64) -> io::Result<u64> {
    Ok(u32::from_le_bytes(bytes.array(at + 4)?).into())
}

/// Position behind a chunk of that size.
fn end(at: u64, size: u64) -> u64 {
    at.saturating_add(HEADER).saturating_add(size)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(content.len()).unwrap().to_le_bytes();
        let padding = &[0][..content.len() % 2];
        [name, &size[..], content, padding].concat()
    }

    fn list(kind: &[u8; 4], chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"LIST", &[&kind[..], &chunks.concat()].concat())
    }

    fn cut(content: &[u8]) -> Option<Overlay> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let media = MediaFile::new("cut.avi".into(), file).unwrap();
        cut_chunk(&mut Bytes::new(&media, &|| false).unwrap()).unwrap()
    }

    #[test]
    fn the_last_chunk_is_as_long_as_the_file_has_it_and_no_other_is_changed() {
        let media = [list(b"rec ", &[chunk(b"00dc", b"12345"), chunk(b"01wb", b"678")]), chunk(b"00dc", b"abcdef")];
        let [head, media] = [list(b"hdrl", &[chunk(b"avih", &[0; 56])]), list(b"movi", &media)];
        let file = [&b"RIFF\xff\xff\0\0AVI "[..], &head, &media].concat();
        let whole = [&b"RIFF"[..], &(file.len() as u32 - 8).to_le_bytes(), &file[8..]].concat();
        assert_eq!(cut(&whole), None);
        let at = |size: usize| file.len() - size;
        let of = |from_end: usize, size: u8| Some(Overlay { at: at(from_end) as u64 + 4, bytes: vec![size, 0, 0, 0] });
        assert_eq!(cut(&file[..at(2)]), of(14, 4));
        assert_eq!(cut(&file[..at(6)]), of(14, 0), "nothing of its content");
        assert_eq!([cut(&file[..at(7)]), cut(&file[..at(14)]), cut(&file[..40])], [None, None, None], "no header");
        assert_eq!(cut(&file[..at(16)]), of(26, 2), "within a list of one moment");
        let second = [&whole[..], b"RIFF\xff\0\0\0AVIX", &media].concat();
        let end = second.len();
        assert_eq!(cut(&second[..end - 1]).map(|o| (o.at, o.bytes[0])), Some((end as u64 - 10, 5)));
        let indexed = [&file[..], b"idx1\x20\0\0\0", &[0; 16]].concat();
        assert_eq!(cut(&indexed), None, "a cut index");
        assert_eq!([cut(b"RIFF\xff\0\0\0WAVEfmt "), cut(b"RIFF"), cut(b"")], [None, None, None]);
    }
}
