//! Sound of MPEG audio that a transport stream carries as private data (ISO/IEC 13818-1: 2.4.4, programme tables; 2.4.3.6, packets).
//!
//! GStreamer's demuxer leaves out a stream of type 6 without a descriptor that it knows, and says nothing of it. ffmpeg looks into
//! it. The demuxer finds it when the programme's first table says what it is: of a table of one version it reads the first alone.

use std::collections::HashMap;
use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;

/// Bytes of a packet.
const PACKET: u64 = 188;
/// Packets from the start in which tables and sounds are looked for: 3 MB, some seconds of a broadcast.
const LOOKED_AT: u64 = 1 << 14;
/// Type of a stream of private data.
const PRIVATE: u8 = 6;
/// Type of a stream of MPEG audio.
const MPEG_AUDIO: u8 = 3;
/// Descriptors that say what private data are: registration, teletext, subtitles, AC-3, E-AC-3, DTS, AAC, and DVB's extension.
const TOLD: [u8; 8] = [0x05, 0x56, 0x59, 0x6a, 0x7a, 0x7b, 0x7c, 0x7f];

/// What the first tables of the programmes are to say for MPEG audio that is called private data; nothing of another format.
///
/// # Errors
/// That of a read.
pub(super) fn untold_sounds(bytes: &mut Bytes<'_>) -> io::Result<Vec<Overlay>> {
    let (mut tables, mut sounds) = (HashMap::new(), HashMap::new());
    // Tables of the programmes, by the numbers of their packets; none before they came.
    let mut programmes: HashMap<u16, Option<Table>> = HashMap::new();
    for at in (0..LOOKED_AT.min(bytes.size() / PACKET)).map(|n| n * PACKET) {
        let packet: [u8; PACKET as usize] = bytes.array(at)?;
        let Some((number, begins, from)) = payload(&packet) else {
            if at == 0 { return Ok(Vec::new()) } else { continue }
        };
        let content = &packet[from..];
        if number == 0 || programmes.get(&number).is_some_and(Option::is_none) {
            let section: &mut Section = tables.entry(number).or_default();
            section.push(content, begins, at + from as u64);
            let Some(whole) = section.whole() else { continue };
            if number == 0 {
                // Network information has the number 0 of a programme.
                let rows = whole.get(8..whole.len() - 4).unwrap_or_default().as_chunks::<4>().0;
                let named = rows.iter().filter(|row| row[..2] != [0; 2]);
                for row in named {
                    programmes.entry(pid(row[2], row[3])).or_default();
                }
            } else {
                let table = Table::read(section);
                sounds.extend(table.private.iter().map(|(sound, _)| (*sound, number)));
                programmes.insert(number, Some(table));
            }
        } else if begins
            && let Some(programme) = sounds.get(&number)
            && let Some(Some(table)) = programmes.get_mut(programme)
        {
            if is_mpeg_audio(content) {
                table.name(number);
            }
            sounds.remove(&number);
        }
        if sounds.is_empty() && !programmes.is_empty() && programmes.values().all(Option::is_some) {
            break;
        }
    }
    Ok(programmes.into_values().flatten().flat_map(Table::overlays).collect())
}

/// The number of the stream of a packet, whether something begins in it, and where its content is; none without content.
fn payload(packet: &[u8]) -> Option<(u16, bool, usize)> {
    let &[0x47, high, low, flags, ..] = packet else { return None };
    let from = if flags & 0x20 == 0 { 4 } else { 5 + usize::from(packet[4]) };
    (flags & 0x10 != 0 && from < packet.len()).then_some((pid(high, low), high & 0x40 != 0, from))
}

/// Thirteen bits of a stream's number.
fn pid(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high & 0x1f, low])
}

/// Bytes of a table, with their positions in the file.
#[derive(Default)]
struct Section {
    bytes: Vec<u8>,
    places: Vec<u64>,
}

impl Section {
    /// Takes the content of a packet at a position.
    fn push(&mut self, content: &[u8], begins: bool, at: u64) {
        let skipped = match begins {
            true => 1 + usize::from(content[0]),
            false if self.bytes.is_empty() => return,
            false => 0,
        };
        if begins {
            self.bytes.clear();
            self.places.clear();
        }
        self.bytes.extend(content.iter().skip(skipped));
        self.places.extend((at..at + content.len() as u64).skip(skipped));
    }

    /// The table, once it is there as a whole and its check sum is right.
    fn whole(&mut self) -> Option<&[u8]> {
        let &[_, high, low, ..] = &self.bytes[..] else { return None };
        let length = 3 + usize::from(pid(high, low) & 0xfff);
        if self.bytes.len() < length || length < 12 {
            return None;
        }
        self.bytes.truncate(length);
        self.places.truncate(length);
        (check_sum(&self.bytes) == 0).then_some(&self.bytes)
    }
}

/// Table of a programme.
struct Table {
    bytes: Vec<u8>,
    places: Vec<u64>,
    /// Streams of private data that nothing tells the codec of, and where in the table their type is.
    private: Vec<(u16, usize)>,
    /// Whether another type is to stand in it.
    changed: bool,
}

impl Table {
    fn read(section: &Section) -> Self {
        let Section { bytes, places } = section;
        let mut table = Table { bytes: bytes.clone(), places: places.clone(), private: Vec::new(), changed: false };
        let twelve = |at: usize| Some(usize::from(pid(*bytes.get(at)?, *bytes.get(at + 1)?) & 0xfff));
        let Some(mut at) = twelve(10).map(|length| 12 + length) else { return table };
        while at + 5 <= bytes.len().saturating_sub(4)
            && let Some(length) = twelve(at + 3)
        {
            let (mut descriptors, mut told) = (bytes.get(at + 5..at + 5 + length).unwrap_or_default(), false);
            while let [tag, length, rest @ ..] = descriptors {
                told |= TOLD.contains(tag);
                descriptors = rest.get(usize::from(*length)..).unwrap_or_default();
            }
            if bytes[at] == PRIVATE && !told {
                table.private.push((pid(bytes[at + 1], bytes[at + 2]), at));
            }
            at += 5 + length;
        }
        table
    }

    /// Notes that a stream is MPEG audio.
    fn name(&mut self, number: u16) {
        for (_, at) in self.private.iter().filter(|(stream, _)| *stream == number) {
            (self.bytes[*at], self.changed) = (MPEG_AUDIO, true);
        }
    }

    /// The bytes that differ, check sum included, one by one: a table may go on in another packet.
    fn overlays(mut self) -> Vec<Overlay> {
        if !self.changed {
            return Vec::new();
        }
        let end = self.bytes.len() - 4;
        let sum = check_sum(&self.bytes[..end]).to_be_bytes();
        self.bytes[end..].copy_from_slice(&sum);
        let changed = self.private.iter().map(|(_, at)| *at).chain(end..end + 4);
        changed.map(|at| Overlay { at: self.places[at], bytes: vec![self.bytes[at]] }).collect()
    }
}

/// CRC-32 as tables have it (ISO/IEC 13818-1, annex A): 0 over a table and its own.
fn check_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte) << 24, |sum, _| sum << 1 ^ if sum >> 31 == 1 { 0x04c1_1db7 } else { 0 })
    })
}

/// Whether a packet of a stream begins with a frame of MPEG audio (ISO/IEC 11172-3, 2.4.2.3).
fn is_mpeg_audio(content: &[u8]) -> bool {
    let &[0, 0, 1, _, _, _, _, _, header, ..] = content else { return false };
    let Some(&[0xff, second, third, ..]) = content.get(9 + usize::from(header)..) else { return false };
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    second >> 5 == 7 && version != 1 && layer != 0 && third >> 4 != 15 && third >> 4 != 0 && third >> 2 & 3 != 3
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    /// A packet of a stream, in which something begins.
    fn packet(number: u16, content: &[u8]) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        let mut packet = [&[0x47, high | 0x40, low, 0x10][..], content].concat();
        packet.resize(PACKET as usize, 0xff);
        packet
    }

    /// A table behind its pointer, with its check sum.
    fn table(id: u8, content: &[u8]) -> Vec<u8> {
        let mut table = [&[id, 0xb0, content.len() as u8 + 9, 0, 1, 0xc1, 0, 0][..], content].concat();
        let sum = check_sum(&table).to_be_bytes();
        table.extend(sum);
        [&[0][..], &table].concat()
    }

    fn overlays(packets: &[Vec<u8>]) -> Vec<Overlay> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&packets.concat()).unwrap();
        let media = MediaFile::new("a.ts".into(), file).unwrap();
        let mut found = untold_sounds(&mut Bytes::new(&media, &|| false).unwrap()).unwrap();
        found.sort_unstable_by_key(|overlay| overlay.at);
        found
    }

    #[test]
    fn private_data_that_are_mpeg_audio_are_told_as_such_and_others_are_not() {
        let programmes = packet(0, &table(0, &[0, 1, 0xe1, 0]));
        // Pictures; private data without a word, with a language, and with AC-3's descriptor.
        let language = [0x0a, 4, b'd', b'e', b'u', 0];
        let rows = [
            vec![0x1b, 0xe1, 1, 0xf0, 0],
            vec![6, 0xe1, 2, 0xf0, 0],
            [&[6, 0xe1, 3, 0xf0, 6][..], &language].concat(),
            vec![6, 0xe1, 4, 0xf0, 3, 0x6a, 1, 0],
        ];
        let streams = packet(0x100, &table(2, &[&[0xe1, 1, 0xf0, 0][..], &rows.concat()].concat()));
        let frame =
            |number, header: [u8; 3]| packet(number, &[&[0, 0, 1, 0xbd, 0, 0, 0x80, 0, 0][..], &header].concat());
        let (layer_2, not) = ([0xff, 0xfd, 0xa4], [0xff, 0xf1, 0x50]);
        let whole = [&programmes, &streams, &frame(0x102, layer_2), &frame(0x103, not), &frame(0x104, layer_2)];
        let found = overlays(&whole.map(Clone::clone));
        // The table begins behind the header of its packet and the pointer, its streams 12 bytes later.
        let at = |of: u64| PACKET + 5 + of;
        assert_eq!(found.iter().map(|o| o.at).collect::<Vec<_>>()[..2], [at(17), at(22)], "{found:?}");
        assert_eq!((&found[0].bytes[..], &found[1].bytes[..], found.len()), (&[3][..], &[6][..], 6));
        let mut shown = whole.map(Clone::clone).concat();
        found.iter().for_each(|o| shown[o.at as usize] = o.bytes[0]);
        let length = 3 + usize::from(shown[at(2) as usize]);
        assert_eq!(check_sum(&shown[at(0) as usize..][..length]), 0);
        // Once the table says it there is nothing to tell.
        assert!(overlays(&[shown]).is_empty());
        assert!(overlays(&[programmes, streams, frame(0x102, not), frame(0x103, not)]).is_empty());
        assert!(overlays(&[b"FLV and something".repeat(30)]).is_empty());
    }
}
