//! The last packet of an MPEG program stream that is cut short (ISO/IEC 13818-1, 2.5.3 and 2.4.3.7; ISO/IEC 11172-1).
//!
//! GStreamer's demuxer leaves out a packet that is longer than what is left of the file: one or two pictures, and some packets of
//! sound. ffmpeg takes as much of it as there is; so does the demuxer when the packet says that it is no longer.

use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;

/// Start of a pack, and what all packets begin with.
const PACK: [u8; 4] = [0, 0, 1, 0xba];
const START: [u8; 3] = [0, 0, 1];
/// Bytes in front of a packet's content: its start, its kind, and how long the content is.
const HEADER: u64 = 6;
/// End of the file in which the last pack begins: one has a packet of 64 KiB at most behind others.
const TAIL_BYTES: u64 = 256 << 10;

/// The length that the last packet has in the file; none for another format, or where no packet is cut.
///
/// # Errors
/// That of a read, and too many packets.
pub(super) fn cut_packet(bytes: &mut Bytes<'_>) -> io::Result<Option<Overlay>> {
    if bytes.size() < HEADER || bytes.array::<4>(0)? != PACK {
        return Ok(None);
    }
    let start = bytes.size().saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; (bytes.size() - start) as usize];
    bytes.read(start, &mut tail)?;
    // The content of a packet may look like a pack, but not like packets up to the end of the file.
    let packs = tail.windows(PACK.len()).enumerate().filter(|(_, pack)| *pack == PACK);
    for (pack, _) in packs {
        if let Some(cut) = follow(bytes, &tail[pack..])? {
            let at = start + (pack + cut.at) as u64;
            return Ok(Some(Overlay { at: at + 4, bytes: cut.there.to_be_bytes().to_vec() }));
        }
    }
    Ok(None)
}

/// A packet that is cut: its position, and the bytes of its content that are there.
struct Cut {
    at: usize,
    there: u16,
}

/// The last packet from a pack on, if packet follows packet up to one that is cut.
fn follow(bytes: &mut Bytes<'_>, tail: &[u8]) -> io::Result<Option<Cut>> {
    let mut at = 0;
    while let Some(&[zero, none, one, kind, high, low]) = tail.get(at..).and_then(|rest| rest.first_chunk()) {
        bytes.spend(1)?;
        if [zero, none, one] != START {
            return Ok(None);
        }
        at = match kind {
            // Of MPEG-2 the header of a pack tells how many bytes are stuffed behind it.
            0xba if high >> 6 == 1 => at + 14 + usize::from(tail.get(at + 13).map_or(0, |stuffed| stuffed & 7)),
            0xba => at + 12,
            0xb9 => at + 4,
            0xbb.. => {
                let end = at + HEADER as usize + usize::from(u16::from_be_bytes([high, low]));
                if end > tail.len() {
                    let there = (tail.len() - at - HEADER as usize) as u16;
                    return Ok(Some(Cut { at, there }));
                }
                end
            }
            _ => return Ok(None),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    fn packet(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[0, 0, 1, kind][..], &(content.len() as u16).to_be_bytes(), content].concat()
    }

    fn cut(content: &[u8]) -> Option<Overlay> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let media = MediaFile::new("cut.mpg".into(), file).unwrap();
        cut_packet(&mut Bytes::new(&media, &|| false).unwrap()).unwrap()
    }

    #[test]
    fn the_last_packet_is_as_long_as_the_file_has_it_and_no_other_is_changed() {
        let mpeg1 = [&PACK[..], &[0x21; 8]].concat();
        let mpeg2 = [&PACK[..], &[0x44; 9], &[0xfa, 0xff, 0xff]].concat();
        for pack in [mpeg1, mpeg2] {
            // The first picture holds what looks like a pack.
            let pictures = [packet(0xe0, &PACK), packet(0xc0, b"sound"), packet(0xe0, b"picture")].concat();
            let file = [&pack[..], &packet(0xbb, &[0; 9]), &pack, &pictures].concat();
            let end = file.len() as u64;
            assert_eq!([cut(&file), cut(&[&file[..], &[0, 0, 1, 0xb9]].concat())], [None, None]);
            let of = |there: u8| Some(Overlay { at: end - 9, bytes: vec![0, there] });
            let less = |by: usize| cut(&file[..file.len() - by]);
            assert_eq!([less(1), less(6), less(7), less(8)], [of(6), of(1), of(0), None]);
            assert_eq!(less(14).map(|o| (o.at, o.bytes)), Some((end - 20, vec![0, 4])), "the sound");
        }
        assert_eq!([cut(b"RIFF"), cut(b""), cut(&[0, 0, 1, 0xb3, 1, 2, 3, 4])], [None, None, None]);
    }
}
