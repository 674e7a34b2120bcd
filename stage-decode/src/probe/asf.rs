//! The last data packet of a Windows Media file that is cut short (Advanced Systems Format 1.20, 3.2 and 5.2).
//!
//! GStreamer's demuxer leaves out a data packet that is not there as a whole: some KB of pictures and sound. ffmpeg reads what there is
//! of it; so does the demuxer when the packet is filled up, says that it has the payloads only of which something is there, and the last of them
//! that it is no longer.

use std::io;
use std::ops::Range;

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
/// Bytes of the data about a picture that every payload of it repeats, at least: its size, and its time.
const SIZED: usize = 8;

/// What the demuxer is to see of the last data packet; nothing for another format, or where none is cut.
///
/// # Errors
/// That of a read, and too many objects.
pub(super) fn cut_packet(bytes: &mut Bytes<'_>) -> io::Result<Vec<Overlay>> {
    if !is(bytes) {
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
    let Some((place, told, cut)) = payloads_there(&packet) else { return Ok(Vec::new()) };
    let rest = Overlay { at: bytes.size(), bytes: vec![0; (packet_bytes - there) as usize] };
    let mut overlays = vec![Overlay { at: at + place as u64, bytes: vec![told] }, rest];
    let Some(cut) = cut else { return Ok(overlays) };
    let (length_at, width) = cut.length_at;
    let length = (packet.len() - cut.content.start) as u32;
    overlays.push(Overlay { at: at + length_at as u64, bytes: length.to_le_bytes()[..width].to_vec() });
    // All payloads of a picture or packet of sound tell how long it is.
    let object = cut.offset.saturating_add(length).to_le_bytes();
    let (mut from, mut before) = (at, packet);
    loop {
        bytes.spend(before.len() as u64)?;
        let same = payloads(&before).1.into_iter().filter(|other| other.object == cut.object);
        let same: Vec<_> = same.filter(|other| from == at || other.content.end <= before.len()).collect();
        let sized = same.iter().filter_map(|other| other.size_at);
        overlays.extend(sized.map(|place| Overlay { at: from + place as u64, bytes: object.to_vec() }));
        if same.is_empty() || same.iter().any(|other| other.offset == 0) || from < start + packet_bytes {
            return Ok(overlays);
        }
        from -= packet_bytes;
        before.resize(packet_bytes as usize, 0);
        bytes.read(from, &mut before)?;
    }
}

/// Whether a file is one of Windows Media.
pub(super) fn is(bytes: &mut Bytes<'_>) -> bool {
    bytes.size() >= HEADER_BYTES && bytes.array(0).is_ok_and(|start| start == HEADER)
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

/// Payload of a data packet, by its header; what is there of its content may be less than it tells.
struct Payload {
    /// Stream, and number of the picture or packet of sound in it.
    object: (usize, usize),
    /// Where in that its content begins.
    offset: u32,
    /// Places of the size of that, if it tells it, and of the length of the content, with its width.
    size_at: Option<usize>,
    length_at: (usize, usize),
    content: Range<usize>,
}

/// Where a data packet tells how many payloads it has, and those whose headers are there, if it has several.
fn payloads(packet: &[u8]) -> (Option<(usize, u8)>, Vec<Payload>) {
    let mut reader = Reader { packet, at: 0 };
    let mut all = Vec::new();
    let place = reader.head();
    let Some((place, told, properties)) = place else { return (None, all) };
    for _ in 0..told & 0x3f {
        let Some(payload) = reader.payload(properties, told) else { break };
        reader.at = payload.content.end;
        all.push(payload);
    }
    (Some((place, told as u8)), all)
}

/// Where a data packet tells how many payloads it has, what is to stand there for those of which something is there, and the one that is cut; none
/// if it has one alone, or there is nothing of any.
fn payloads_there(packet: &[u8]) -> Option<(usize, u8, Option<Payload>)> {
    let (head, mut all) = payloads(packet);
    let (place, told) = head?;
    // One that does not tell how long its picture is cannot tell that it is shorter.
    let is_read = |payload: &Payload| payload.content.start < packet.len() && payload.size_at.is_some();
    all.retain(|payload| payload.content.end <= packet.len() || is_read(payload));
    let count = all.len() as u8;
    let cut = all.pop().filter(|last| last.content.end > packet.len());
    (count > 0).then_some((place, told & 0xc0 | count, cut))
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

    /// Reads the head of a packet of several payloads: where it tells how many, that byte, and which lengths a payload has.
    fn head(&mut self) -> Option<(usize, usize, usize)> {
        let mut lengths = self.number(1)?;
        if lengths & 0x80 != 0 {
            self.skip(lengths & 0xf)?;
            lengths = self.number(1)?;
        }
        let properties = self.number(1)?;
        // Lengths of the packet and of its padding, and its number; then a time and a duration.
        for kind in [lengths >> 5, lengths >> 1, lengths >> 3] {
            self.number(kind)?;
        }
        self.skip(6)?;
        let place = self.at;
        (lengths & 1 != 0).then_some((place, self.number(1)?, properties))
    }

    /// Reads the header of a payload.
    fn payload(&mut self, properties: usize, told: usize) -> Option<Payload> {
        let stream = self.number(1)? & 0x7f;
        let number = self.number(properties >> 4)?;
        let offset = u32::try_from(self.number(properties >> 2)?).ok()?;
        let repeated = self.number(properties)?;
        let size_at = (repeated >= SIZED).then_some(self.at);
        self.skip(repeated)?;
        let length_at = self.at;
        let length = self.number(told >> 6)?;
        let content = self.at..self.at.checked_add(length)?;
        Some(Payload {
            object: (stream, number),
            offset,
            size_at,
            length_at: (length_at, self.at - length_at),
            content,
        })
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

    /// A file of two data packets of two payloads each, behind 13 bytes, each with a head of 17: an object of 9 bytes, one of 17 in both packets, and
    /// one of 12 that goes beyond the second.
    fn file() -> Vec<u8> {
        let sizes = [[PACKET as u32; 2].map(u32::to_le_bytes).concat(), vec![0; 4]].concat();
        let properties = object(PROPERTIES, &[vec![0; 68], sizes].concat());
        let header = object(HEADER, &[&[0; 6][..], &object([7; 16], b"other"), &properties].concat());
        let payload = |number: u8, offset: u8, content: &[u8]| {
            let repeated = [0; 8];
            [&[1, number, offset, 0, 0, 0, 8][..], &repeated, &(content.len() as u16).to_le_bytes(), content].concat()
        };
        let packet = |payloads: [Vec<u8>; 2]| {
            let mut packet = vec![0x82, 0, 0, 0x09, 0x5d, 21, 0, 0, 0, 0, 0, 0, 0x82];
            packet.extend(payloads.concat());
            packet.resize(PACKET, 0);
            packet
        };
        let first = packet([payload(5, 0, &[3; 9]), payload(6, 0, &[4; 8])]);
        let second = packet([payload(6, 8, &[4; 9]), payload(7, 0, &[5; 12])]);
        let data = object(DATA, &[&[0; 26][..], &first, &second].concat());
        [header, data].concat()
    }

    fn cut(content: &[u8]) -> Vec<Overlay> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let media = MediaFile::new("cut.wmv".into(), file).unwrap();
        cut_packet(&mut Bytes::new(&media, &|| false).unwrap()).unwrap()
    }

    #[test]
    fn the_last_data_packet_has_the_payloads_of_which_something_is_there_and_is_filled_up() {
        let file = file();
        let [end, first] = [file.len(), file.len() - 2 * PACKET];
        assert_eq!(cut(&file), []);
        let one = |at: usize, bytes: &[u8]| Overlay { at: at as u64, bytes: bytes.to_vec() };
        let told = |at: usize, there: usize, count: u8, more: &[Overlay]| {
            let filled = [one(at + 12, &[0x80 | count]), one(at + there, &vec![0; PACKET - there])];
            [&filled[..], more].concat()
        };
        let second = first + PACKET;
        // The last object is 7 bytes long, and so is its payload.
        let shorter = [one(second + 54, &[7, 0]), one(second + 46, &[7, 0, 0, 0])];
        assert_eq!(cut(&file[..end - 1]), told(second, PACKET - 1, 2, &shorter));
        assert_eq!(cut(&file[..second + 39]), told(second, 39, 1, &[]));
        // The one before it has 13 bytes, of which 8 lie in the first packet.
        let size = [13, 0, 0, 0];
        let shorter = [one(second + 28, &[5, 0]), one(second + 20, &size), one(first + 46, &size)];
        assert_eq!(cut(&file[..second + 35]), told(second, 35, 1, &shorter));
        assert_eq!(cut(&file[..first + 45]), told(first, 45, 1, &[]));
        for there in [30, 14, 13, 5, 0] {
            assert_eq!(cut(&file[..second + there]), [], "{there} bytes");
        }
        assert_eq!(cut(b"RIFF"), []);
        assert_eq!(cut(&file[..60]), []);
    }
}
