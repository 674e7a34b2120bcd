//! Field pictures of H.264: which packet holds the second field of a picture whose first one came in the packet before it.
//!
//! Format: ITU-T H.264, 7.3.2.1 (sequence parameter set), 7.3.2.2 (picture parameter set), 7.3.3 (slice header), 7.4.1.2.4 (first
//! and second field); ISO/IEC 14496-15, 5.3.3.1 (`avcC`).

use std::collections::HashMap;

use crate::bits::Bits;

/// Bytes of a unit that are looked at: what is wanted of it lies near its start.
const HEAD_BYTES: usize = 512;

/// What a sequence parameter set tells of slice headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    separate_planes: bool,
    frame_number_bits: u32,
    frames_only: bool,
}

/// Field of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    frame_number: u32,
    bottom: bool,
}

/// Reader of the packets of a track, in file order.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Bytes of a unit's length; 0 where start codes part them.
    length_bytes: usize,
    sequences: HashMap<u32, Sequence>,
    /// Sequence parameter set of each picture parameter set.
    pictures: HashMap<u32, u32>,
    /// First field that waits for its second one.
    first: Option<Field>,
}

impl Fields {
    /// Reader of a track with this `avcC`; of none units follow start codes.
    pub(super) fn new(avcc: Option<&[u8]>) -> Self {
        let mut fields = Fields::default();
        if let Some(&[_, _, _, _, length, ref sets @ ..]) = avcc {
            fields.length_bytes = usize::from(length & 3) + 1;
            fields.read_sets(sets);
        }
        fields
    }

    /// Whether pictures may come as fields, as far as is known before the first packet.
    pub(super) fn may_come(&self) -> bool {
        self.sequences.is_empty() || self.sequences.values().any(|sequence| !sequence.frames_only)
    }

    /// Reads the parameter sets of an `avcC`, which have a count and a length of two bytes each.
    fn read_sets(&mut self, mut sets: &[u8]) -> Option<()> {
        for mask in [0x1f, 0xff] {
            let (&count, rest) = sets.split_first()?;
            sets = rest;
            for _ in 0..count & mask {
                let (length, rest) = sets.split_first_chunk()?;
                let (unit, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                self.unit(unit);
                sets = rest;
            }
        }
        Some(())
    }

    /// Whether the next packet holds the second field of a picture.
    pub(super) fn is_second(&mut self, packet: &[u8]) -> bool {
        let mut rest = packet;
        while let Some(unit) = self.next_unit(&mut rest) {
            // A packet has slices of one picture.
            if let Some(field) = self.unit(unit) {
                let second = field.is_some_and(|f| self.first == Some(Field { bottom: !f.bottom, ..f }));
                self.first = field.filter(|_| !second);
                return second;
            }
        }
        false
    }

    /// Takes the next unit off a packet.
    fn next_unit<'p>(&self, rest: &mut &'p [u8]) -> Option<&'p [u8]> {
        if self.length_bytes > 0 {
            let (length, units) = rest.split_at_checked(self.length_bytes)?;
            let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            let (unit, units) = units.split_at(length.min(units.len()));
            *rest = units;
            return Some(unit);
        }
        let start = rest.windows(3).position(|code| code == [0, 0, 1])?;
        let unit = &rest[start + 3..];
        *rest = unit;
        Some(unit)
    }

    /// Reads a unit: the field that a slice belongs to, or none where that is a frame; nothing of other units.
    fn unit(&mut self, unit: &[u8]) -> Option<Option<Field>> {
        let (&header, content) = unit.split_first()?;
        let mut bits = head(content);
        match header & 0x1f {
            7 => {
                let (id, sequence) = sequence(&mut bits)?;
                self.sequences.insert(id, sequence);
            }
            8 => {
                let (id, sequence) = (golomb(&mut bits)?, golomb(&mut bits)?);
                self.pictures.insert(id, sequence);
            }
            1 | 2 | 5 => return Some(self.slice(&mut bits)),
            _ => {}
        }
        None
    }

    fn slice(&self, bits: &mut Bits<'_>) -> Option<Field> {
        let [_first_block, _kind, picture] = [golomb(bits)?, golomb(bits)?, golomb(bits)?];
        let sequence = self.sequences.get(self.pictures.get(&picture)?)?;
        bits.take(if sequence.separate_planes { 2 } else { 0 })?;
        let frame_number = bits.take(sequence.frame_number_bits)?;
        let is_field = !sequence.frames_only && bits.take(1)? == 1;
        if is_field { Some(Field { frame_number, bottom: bits.take(1)? == 1 }) } else { None }
    }
}

/// Number of a sequence parameter set, and what it tells.
fn sequence(bits: &mut Bits<'_>) -> Option<(u32, Sequence)> {
    let profile = bits.take(8)?;
    bits.take(16)?;
    let id = golomb(bits)?;
    let mut separate_planes = false;
    if [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135].contains(&profile) {
        let chroma = golomb(bits)?;
        separate_planes = chroma == 3 && bits.take(1)? == 1;
        let [_luma_depth, _chroma_depth] = [golomb(bits)?, golomb(bits)?];
        bits.take(1)?;
        if bits.take(1)? == 1 {
            for list in 0..if chroma == 3 { 12 } else { 8 } {
                if bits.take(1)? == 1 {
                    skip_scaling(bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    let frame_number_bits = golomb(bits)?.checked_add(4).filter(|bits| *bits <= 16)?;
    match golomb(bits)? {
        0 => drop(golomb(bits)?),
        1 => {
            bits.take(1)?;
            let [_offset, _between] = [golomb(bits)?, golomb(bits)?];
            for _ in 0..golomb(bits)?.min(255) {
                golomb(bits)?;
            }
        }
        _ => {}
    }
    golomb(bits)?;
    bits.take(1)?;
    let [_width, _height] = [golomb(bits)?, golomb(bits)?];
    Some((id, Sequence { separate_planes, frame_number_bits, frames_only: bits.take(1)? == 1 }))
}

/// Bits at the start of a unit, without the bytes that keep start codes out of it.
fn head(content: &[u8]) -> Bits<'static> {
    let content = &content[..content.len().min(HEAD_BYTES)];
    let escapes = |at: usize| at >= 2 && content[at - 2..=at] == [0, 0, 3];
    let bytes = content.iter().enumerate().filter(|&(at, _)| !escapes(at)).map(|(_, &byte)| byte);
    Bits::new(bytes.collect::<Vec<u8>>())
}

/// A number in Exp-Golomb code (9.1).
fn golomb(bits: &mut Bits<'_>) -> Option<u32> {
    let zeros = bits.zeros().filter(|zeros| *zeros < 32)?;
    Some((1 << zeros) - 1 + bits.take(zeros)?)
}

/// Passes a scaling list (7.3.2.1.1.1).
fn skip_scaling(bits: &mut Bits<'_>, size: u32) -> Option<()> {
    let (mut last, mut next) = (8i64, 8i64);
    for _ in 0..size {
        if next != 0 {
            let code = i64::from(golomb(bits)?);
            let delta = if code % 2 == 1 { code / 2 + 1 } else { -(code / 2) };
            next = (last + delta).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequence and picture parameter sets of a stream of fields (main profile, 4 bits of frame number).
    const SETS: [&[u8]; 2] = [&[0x67, 77, 0, 30, 0xda, 0x11, 0x14], &[0x68, 0xce, 0x3c, 0x80]];

    /// A packet behind start codes: a slice of a field, by frame number and whether it is the bottom one.
    fn packet(number: u8, bottom: bool) -> Vec<u8> {
        // Block 0, type 7, set 0, 4 bits, field, bottom.
        let bits = [1, 0, 0, 0, 1, 0, 0, 0, 1].into_iter().chain((0..4).rev().map(|bit| number >> bit & 1));
        let bits: Vec<u8> = bits.chain([1, u8::from(bottom), 1]).collect();
        let bytes = bits.chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit));
        [0, 0, 1, 9, 0xf0, 0, 0, 1, 0x61].into_iter().chain(bytes).collect()
    }

    fn seconds(fields: &mut Fields, packets: &[(u8, bool)]) -> Vec<bool> {
        packets.iter().map(|&(number, bottom)| fields.is_second(&packet(number, bottom))).collect()
    }

    #[test]
    fn the_second_field_of_a_picture_has_its_number_and_the_other_rows() {
        let mut fields = Fields::new(None);
        assert!(SETS.iter().all(|unit| fields.unit(unit).is_none()));
        assert!(fields.may_come());
        let pairs = [(0, false), (0, true), (1, false), (1, true)];
        assert_eq!(seconds(&mut fields, &pairs), [false, true, false, true]);
        // One is missing; bottom fields come first.
        let broken = [(2, false), (3, false), (3, true), (4, true), (4, false), (5, true)];
        assert_eq!(seconds(&mut fields, &broken), [false, false, true, false, true, false]);
    }

    #[test]
    fn parameter_sets_are_read_from_the_index_and_nothing_of_a_broken_one() {
        let sized = |unit: &[u8]| [&(unit.len() as u16).to_be_bytes()[..], unit].concat();
        let avcc = [&[1, 77, 0, 30, 0xff, 0xe1][..], &sized(SETS[0]), &[1], &sized(SETS[1])].concat();
        let mut fields = Fields::new(Some(&avcc));
        assert!(fields.may_come() && fields.length_bytes == 4);
        let unit = &packet(0, false)[8..];
        let framed = [&(unit.len() as u32).to_be_bytes()[..], unit].concat();
        assert!(!fields.is_second(&framed) && fields.first.is_some());
        for length in 0..avcc.len() {
            let mut cut = Fields::new(Some(&avcc[..length]));
            assert!(!cut.is_second(&framed) && !cut.is_second(&[]));
        }
        let frames = Fields::new(Some(&[1, 66, 0, 30, 0xff, 0xe1, 0, 7, 0x67, 66, 0, 30, 0xda, 0x11, 0x54]));
        assert!(!frames.may_come(), "{frames:?}");
    }
}
