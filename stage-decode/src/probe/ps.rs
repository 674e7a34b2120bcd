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
/// Kind of a packet of private data: sound of other codecs than MPEG's.
const PRIVATE: u8 = 0xbd;
/// Bytes in front of a packet's content: its start, its kind, and how long the content is.
const HEADER: u64 = 6;
/// End of the file in which the last pack begins: one has a packet of 64 KiB at most behind others.
const TAIL_BYTES: u64 = 256 << 10;

/// The length that the last packet has in the file; nothing for another format, or where no packet is cut.
///
/// # Errors
/// That of a read, and too many packets.
pub(super) fn cut_packet(bytes: &mut Bytes<'_>) -> io::Result<Vec<Overlay>> {
    if bytes.size() < HEADER || bytes.array::<4>(0)? != PACK {
        return Ok(Vec::new());
    }
    let start = bytes.size().saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; (bytes.size() - start) as usize];
    bytes.read(start, &mut tail)?;
    // The content of a packet may look like a pack, but not like packets up to the end of the file.
    let packs = tail.windows(PACK.len()).enumerate().filter(|(_, pack)| *pack == PACK);
    for (pack, _) in packs {
        if let Some(cut) = follow(bytes, &tail[pack..])? {
            let at = start + (pack + cut.at) as u64;
            let length = Overlay { at: at + 4, bytes: cut.there.to_be_bytes().to_vec() };
            let content = &tail[pack + cut.at + HEADER as usize..];
            let first = if cut.kind == PRIVATE { first_frame(content) } else { First::There };
            return Ok(match first {
                First::There => vec![length],
                First::Missing(place) => {
                    vec![length, Overlay { at: at + HEADER + place as u64, bytes: vec![0; 2] }]
                }
                First::Untold => Vec::new(),
            });
        }
    }
    Ok(Vec::new())
}

/// The first frame that begins in a packet of private sound that is cut.
enum First {
    There,
    /// It begins behind what there is; where in the content the packet says so.
    Missing(usize),
    /// The cut goes through the packet's header.
    Untold,
}

/// Looks for the first frame in the content of a packet that is cut: GStreamer's parser refuses one that says it begins behind its end. In front of
/// AC-3 and DTS stand their number, how many frames begin here, and where the first does; 0 for nowhere.
fn first_frame(content: &[u8]) -> First {
    let Some(place) = header_bytes(content) else { return First::Untold };
    let Some(&[number, _, high, low, _, ..]) = content.get(place..) else { return First::Untold };
    let first = usize::from(u16::from_be_bytes([high, low]));
    let is_there = !(0x80..0x90).contains(&number) || place + 3 + first <= content.len();
    if is_there { First::There } else { First::Missing(place + 2) }
}

/// A packet that is cut: its position, and the bytes of its content that are there.
struct Cut {
    at: usize,
    kind: u8,
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
                    return Ok(Some(Cut { at, kind, there }));
                }
                end
            }
            _ => return Ok(None),
        };
    }
    Ok(None)
}

/// Bytes of the header with which the content of a packet begins: of MPEG-2 it tells, of MPEG-1 its parts do; none where it is not whole.
fn header_bytes(content: &[u8]) -> Option<usize> {
    if content.first()? >> 6 == 2 {
        return Some(3 + usize::from(*content.get(2)?));
    }
    // Stuffing, the size of a buffer, and one or two times.
    let mut at = content.iter().position(|byte| *byte != 0xff)?;
    at += if content[at] >> 6 == 1 { 2 } else { 0 };
    Some(at + [1, 1, 5, 10][usize::from(content.get(at)? >> 4 & 3)])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    fn packet(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[0, 0, 1, kind][..], &(content.len() as u16).to_be_bytes(), content].concat()
    }

    fn cut(content: &[u8]) -> Vec<Overlay> {
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
            assert!(cut(&file).is_empty() && cut(&[&file[..], &[0, 0, 1, 0xb9]].concat()).is_empty());
            let of = |there: u8| vec![Overlay { at: end - 9, bytes: vec![0, there] }];
            let less = |by: usize| cut(&file[..file.len() - by]);
            assert_eq!([less(1), less(6), less(7), less(8)], [of(6), of(1), of(0), vec![]]);
            assert_eq!(less(14), [Overlay { at: end - 20, bytes: vec![0, 4] }], "the sound");
        }
        assert!([&b"RIFF"[..], b"", &[0, 0, 1, 0xb3, 1, 2, 3, 4]].into_iter().all(|other| cut(other).is_empty()));
    }

    #[test]
    fn private_sound_that_is_cut_before_its_first_frame_says_that_none_begins() {
        // A time of five bytes; AC-3 of which one frame begins at the third byte behind.
        let sound = [&[0x81, 0x80, 5][..], &[0x21; 5], &[0x80, 1, 0, 4], b"12345678"].concat();
        let before = [&PACK[..], &[0x44; 9], &[0xf8]].concat();
        let file = [before.clone(), packet(PRIVATE, &sound)].concat();
        let at = before.len() as u64;
        let length = |there: u8| Overlay { at: at + 4, bytes: vec![0, there] };
        let less = |by: usize| cut(&file[..file.len() - by]);
        let nowhere = Overlay { at: at + 6 + 10, bytes: vec![0, 0] };
        assert_eq!(less(1), [length(19)]);
        assert_eq!(less(5), [length(15)], "three bytes are there, and the first frame begins");
        assert_eq!(less(6), [length(14), nowhere.clone()]);
        assert_eq!(less(7), [length(13), nowhere]);
        assert_eq!([less(8), less(15), less(18)], [vec![], vec![], vec![]]);
        for header in [&[0x21, 0, 1, 0, 1][..], &[0xff, 0x60, 4, 0x31, 0, 1, 0, 1, 0x11, 0, 1, 0, 1], &[0xff, 0x0f]] {
            assert_eq!(header_bytes(header), Some(header.len()), "MPEG-1");
        }
    }
}
