//! The last data packet of a Windows Media file that is cut short (Advanced Systems Format 1.20, 3.2 and 5.2).
//!
//! GStreamer's demuxer leaves out a data packet that is not there as a whole: some KB of pictures and sound. ffmpeg reads what there is
//! of it; so does the demuxer when the packet is filled up, and says that it has the payloads only that are there as a whole.

use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;

/// How the header, the properties of the file in it, and the media begin.
const HEADER: [u8; 16] = *b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c";
const PROPERTIES: [u8; 16] = *b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65";
const DATA: [u8; 16] = *b"\x36\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c";
/// Bytes in front of the objects in a header, of an object's own head, and in front of the first data packet.
const HEADER_BYTES: u64 = 30;
const OBJECT_BYTES: u64 = 24;
const DATA_BYTES: u64 = 50;
/// Where the properties of a file tell how long a data packet is: at least, and at most.
const PACKET_AT: u64 = 92;
/// Bytes that a data packet may have.
const MAX_PACKET: u64 = 1 << 20;

/// What the demuxer is to see of the last data packet; nothing for another format, or where none is cut.
///
/// # Errors
/// That of a read, and too many objects.
pub(super) fn cut_packet(bytes: &mut Bytes<'_>) -> io::Result<Vec<Overlay>> {
    if bytes.size() < HEADER_BYTES || bytes.array(0)? != HEADER {
        return Ok(Vec::new());
    }
    let data = size(bytes, 0)?;
    let Some(packet_bytes) = packet_bytes(bytes, data)? else { return Ok(Vec::new()) };
    let start = data.saturating_add(DATA_BYTES);
    if start > bytes.size() || bytes.array(data)? != DATA {
        return Ok(Vec::new());
    }
    let end = data.saturating_add(size(bytes, data)?);
    // Who records it tells the size at last.
    if end > start && end <= bytes.size() {
        return Ok(Vec::new());
    }
    let there = (bytes.size() - start) % packet_bytes;
    let at = bytes.size() - there;
    let mut packet = vec![0; there as usize];
    bytes.read(at, &mut packet)?;
    let Some((place, told)) = whole_payloads(&packet) else { return Ok(Vec::new()) };
    let rest = Overlay { at: bytes.size(), bytes: vec![0; (packet_bytes - there) as usize] };
    Ok(vec![Overlay { at: at + place as u64, bytes: vec![told] }, rest])
}

/// Size of the object at a position.
fn size(bytes: &mut Bytes<'_>, at: u64) -> io::Result<u64> {
    Ok(u64::from_le_bytes(bytes.array(at.saturating_add(16))?))
}

/// Bytes of each data packet, by a header of that size; none if it does not say.
fn packet_bytes(bytes: &mut Bytes<'_>, header: u64) -> io::Result<Option<u64>> {
    let mut at = HEADER_BYTES;
    while at.saturating_add(OBJECT_BYTES) <= header.min(bytes.size()) {
        bytes.spend(1)?;
        if bytes.array(at)? == PROPERTIES {
            let least = u32::from_le_bytes(bytes.array(at + PACKET_AT)?);
            let most = u32::from_le_bytes(bytes.array(at + PACKET_AT + 4)?);
            return Ok(Some(u64::from(most)).filter(|size| least == most && (1..=MAX_PACKET).contains(size)));
        }
        at = at.saturating_add(size(bytes, at)?.max(OBJECT_BYTES));
    }
    Ok(None)
}

/// Where a data packet tells how many payloads it has, and what is to stand there for those that are whole in what there is of it; none if
/// it has one alone, or none is whole.
fn whole_payloads(packet: &[u8]) -> Option<(usize, u8)> {
    let mut reader = Reader { packet, at: 0 };
    let mut lengths = reader.number(1)?;
    if lengths & 0x80 != 0 {
        reader.skip(lengths & 0xf)?;
        lengths = reader.number(1)?;
    }
    let properties = reader.number(1)?;
    // Lengths of the packet and of its padding, and its number; then a time and a duration.
    for kind in [lengths >> 5, lengths >> 1, lengths >> 3] {
        reader.number(kind)?;
    }
    reader.skip(6)?;
    if lengths & 1 == 0 {
        return None;
    }
    let place = reader.at;
    let told = reader.number(1)?;
    let payload = |reader: &mut Reader<'_>| {
        reader.skip(1)?;
        reader.number(properties >> 4)?;
        reader.number(properties >> 2)?;
        let repeated = reader.number(properties)?;
        reader.skip(repeated)?;
        let length = reader.number(told >> 6)?;
        reader.skip(length)
    };
    let whole = (0..told & 0x3f).take_while(|_| payload(&mut reader).is_some()).count();
    (whole > 0).then_some((place, (told & 0xc0) as u8 | whole as u8))
}

/// Reader of a data packet of which a part is missing.
struct Reader<'p> {
    packet: &'p [u8],
    at: usize,
}

impl Reader<'_> {
    /// A number of no, one, two or four bytes, as two bits say.
    fn number(&mut self, kind: usize) -> Option<usize> {
        let length = [0, 1, 2, 4][kind & 3];
        let bytes = self.packet.get(self.at..self.at + length)?;
        self.at += length;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.at = self.at.checked_add(length).filter(|end| *end <= self.packet.len())?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    const PACKET: usize = 64;

    fn object(name: [u8; 16], content: &[u8]) -> Vec<u8> {
        [&name[..], &(OBJECT_BYTES + content.len() as u64).to_le_bytes(), content].concat()
    }

    /// A file of two data packets of two payloads each, of 9 and 12 bytes, the first behind 11 bytes and 7 of its own head.
    fn file() -> Vec<u8> {
        let sizes = [[PACKET as u32; 2].map(u32::to_le_bytes).concat(), vec![0; 4]].concat();
        let properties = object(PROPERTIES, &[vec![0; 68], sizes].concat());
        let header = object(HEADER, &[&[0; 6][..], &object([7; 16], b"other"), &properties].concat());
        let payload = |content: &[u8]| {
            let repeated = [0; 8];
            [&[1, 5, 0, 0, 0, 0, 8][..], &repeated, &(content.len() as u16).to_le_bytes(), content].concat()
        };
        let mut packet = vec![0x82, 0, 0, 0x09, 0x5d, 21, 0, 0, 0, 0, 0, 0, 0x82];
        packet.extend([payload(&[3; 9]), payload(&[4; 12])].concat());
        packet.resize(PACKET, 0);
        let data = object(DATA, &[&[0; 26][..], &packet, &packet].concat());
        [header, data].concat()
    }

    fn cut(content: &[u8]) -> Vec<Overlay> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let media = MediaFile::new("cut.wmv".into(), file).unwrap();
        cut_packet(&mut Bytes::new(&media, &|| false).unwrap()).unwrap()
    }

    #[test]
    fn the_last_data_packet_has_the_payloads_that_are_whole_and_is_filled_up() {
        let file = file();
        let [end, first] = [file.len(), file.len() - 2 * PACKET];
        assert_eq!(cut(&file), []);
        // A payload has 17 bytes in front of its content: the second ends at 13 + 26 + 29 = 68, beyond the packet.
        let told = |at: usize, there: usize, whole: u8| {
            vec![
                Overlay { at: (at + 12) as u64, bytes: vec![0x80 | whole] },
                Overlay { at: (at + there) as u64, bytes: vec![0; PACKET - there] },
            ]
        };
        let second = first + PACKET;
        assert_eq!(cut(&file[..end - 1]), told(second, PACKET - 1, 1));
        assert_eq!(cut(&file[..second + 13 + 26]), told(second, 39, 1));
        assert_eq!(cut(&file[..first + 45]), told(first, 45, 1));
        for there in [38, 14, 13, 5, 0] {
            assert_eq!(cut(&file[..second + there]), [], "{there} bytes");
        }
        assert_eq!(cut(b"RIFF"), []);
        assert_eq!(cut(&file[..60]), []);
    }
}
