//! Pictures of AV1 that no other refers to: their frame header has no slot of the decoder's memory to be kept in (`refresh_frame_flags`
//! is 0; AV1 Bitstream & Decoding Process Specification, 5.9.2). With the picture goes what it would have told of probabilities. A key frame
//! that is shown takes all slots: behind it nothing before it is referred to.
//!
//! How units lie in a packet: the specification, 5.3; the header of a file: AV1 Codec ISO Media File Format Binding, 2.3 (`av1C`).

use gstreamer as gst;

use super::Role;
use crate::bits::Bits;

/// Bytes in front of the units in `av1C`.
const HEADER_BYTES: usize = 4;
/// Types of units.
const SEQUENCE: u8 = 1;
const FRAME_HEADER: u8 = 3;
const FRAME: u8 = 6;
/// Types of frames.
const KEY: u32 = 0;
const INTRA_ONLY: u32 = 2;
const SWITCH: u32 = 3;
/// What a sequence says where each frame has a flag of its own.
const BY_FRAME: u32 = 2;

/// Packets of a track, each of which holds a temporal unit or a frame of one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Packets {
    /// None before the first sequence header, and after one that cannot be read or has a decoder model.
    sequence: Option<Sequence>,
}

/// What a sequence header tells of frame headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    screen_content: u32,
    integer_motion: u32,
    order_hint_bits: u32,
    frame_id_bits: u32,
}

impl Packets {
    /// Packets with these caps, whose units say themselves how long they are.
    pub(super) fn of(structure: &gst::StructureRef) -> Option<Self> {
        if structure.get::<&str>("stream-format").ok()? != "obu-stream" {
            return None;
        }
        let mut packets = Packets::default();
        if let Ok(header) = structure.get::<gst::Buffer>("codec_data")
            && let Ok(header) = header.map_readable()
        {
            let units = header.get(HEADER_BYTES..).unwrap_or_default();
            let _ = packets.role(units);
        }
        Some(packets)
    }

    /// Role of a packet's pictures. One with several frames is kept: all but the last are referred to.
    pub(super) fn role(&mut self, packet: &[u8]) -> Role {
        let (mut rest, mut role, mut frames) = (packet, Role::Referred, 0);
        while !rest.is_empty() {
            let Some((kind, unit)) = next_unit(&mut rest) else { return Role::Referred };
            match kind {
                SEQUENCE => self.sequence = sequence(&mut Bits::new(unit)),
                FRAME_HEADER | FRAME => {
                    frames += 1;
                    let read = self.sequence.and_then(|sequence| role_of_frame(sequence, &mut Bits::new(unit)));
                    role = read.unwrap_or(Role::Referred);
                }
                _ => {}
            }
        }
        if frames == 1 { role } else { Role::Referred }
    }
}

/// Takes the next unit off a packet, with its type; none if it does not say where it ends, but for a last one.
fn next_unit<'p>(rest: &mut &'p [u8]) -> Option<(u8, &'p [u8])> {
    let (&header, mut after) = rest.split_first()?;
    let (is_extended, is_sized) = (header & 4 != 0, header & 2 != 0);
    after = after.get(usize::from(is_extended)..)?;
    let mut size = if is_sized { 0 } else { after.len() };
    // A number in groups of seven bits.
    for shift in (0..if is_sized { 56 } else { 0 }).step_by(7) {
        let (&byte, more) = after.split_first()?;
        after = more;
        size |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (unit, more) = after.split_at_checked(size)?;
    *rest = more;
    Some((header >> 3 & 0xf, unit))
}

/// Reads a sequence header (5.5.1); none of a still picture, and where there is a decoder model, for which frame headers have more.
fn sequence(bits: &mut Bits<'_>) -> Option<Sequence> {
    bits.take(3)?;
    let [_is_still, is_reduced] = [bits.take(1)?, bits.take(1)?];
    if is_reduced == 1 {
        return None;
    }
    if bits.take(1)? == 1 {
        bits.skip(64)?;
        if bits.take(1)? == 1 {
            // A number whose length zeros tell (4.10.3).
            let length = bits.zeros()?;
            bits.skip(if length < 32 { length } else { 0 })?;
        }
        if bits.take(1)? == 1 {
            return None;
        }
    }
    let has_delays = bits.take(1)? == 1;
    for _ in 0..=bits.take(5)? {
        bits.skip(12)?;
        if bits.take(5)? > 7 {
            bits.take(1)?;
        }
        if has_delays && bits.take(1)? == 1 {
            bits.take(4)?;
        }
    }
    let [width_bits, height_bits] = [bits.take(4)? + 1, bits.take(4)? + 1];
    bits.skip(width_bits + height_bits)?;
    let mut frame_id_bits = 0;
    if bits.take(1)? == 1 {
        frame_id_bits = bits.take(4)? + 2;
        frame_id_bits += bits.take(3)? + 1;
    }
    // Sizes of blocks and filters, then kinds of prediction.
    bits.skip(3 + 4)?;
    let has_order = bits.take(1)? == 1;
    bits.skip(if has_order { 2 } else { 0 })?;
    let screen_content = if bits.take(1)? == 1 { BY_FRAME } else { bits.take(1)? };
    let integer_motion = if screen_content == 0 || bits.take(1)? == 1 { BY_FRAME } else { bits.take(1)? };
    let order_hint_bits = if has_order { bits.take(3)? + 1 } else { 0 };
    Some(Sequence { screen_content, integer_motion, order_hint_bits, frame_id_bits })
}

/// Role of a frame, from its header (5.9.2); none where that is cut.
fn role_of_frame(sequence: Sequence, bits: &mut Bits<'_>) -> Option<Role> {
    // One that is kept already is shown.
    if bits.take(1)? == 1 {
        return Some(Role::Referred);
    }
    let (kind, is_shown) = (bits.take(2)?, bits.take(1)? == 1);
    if !is_shown {
        bits.take(1)?;
    }
    if kind == KEY && is_shown {
        return Some(Role::Begins);
    }
    let is_resilient = kind == SWITCH || bits.take(1)? == 1;
    bits.take(1)?;
    let screen_content = if sequence.screen_content == BY_FRAME { bits.take(1)? } else { sequence.screen_content };
    if screen_content == 1 && sequence.integer_motion == BY_FRAME {
        bits.take(1)?;
    }
    bits.skip(sequence.frame_id_bits)?;
    if kind == SWITCH {
        return Some(Role::Referred);
    }
    bits.take(1)?;
    bits.skip(sequence.order_hint_bits)?;
    if !(kind == KEY || kind == INTRA_ONLY || is_resilient) {
        bits.take(3)?;
    }
    Some(if bits.take(8)? == 0 { Role::Unreferred } else { Role::Referred })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit with its size.
    fn unit(kind: u8, bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().filter(|b| *b != b' ').map(|b| b - b'0').collect();
        let bytes: Vec<u8> =
            bits.chunks(8).map(|c| c.iter().enumerate().fold(0, |v, (i, b)| v | b << (7 - i))).collect();
        [vec![kind << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    /// Profile 0, no still; no timing, no delays, one point of level 0; 8 bits of width and height; no frame numbers; blocks and filters, kinds of
    /// prediction; order hints of 7 bits; screen content by frame, integer motion by frame.
    const PLAIN: &str = "000 0 0 0 0 00000 000000000000 00000 0111 0111 01011111 00111111 0 111 1111 1 11 1 1 110";
    /// Timing with a length of pictures, delays, level 8 with its tier; frame numbers of 5 + 2 bits; no order hints, no screen content.
    const FULL: &str = "000 0 0 1 00000000000000000000000000000001 00000000000000000000000000011001 1 1 0 1 00000 000000000000 \
                        01000 0 1 0011 0111 0111 01011111 00111111 1 0010 0010 111 1111 0 0 0";

    fn role(sequence: &str, frames: &[&str]) -> Role {
        let units = frames.iter().map(|frame| unit(FRAME, frame));
        let packet: Vec<u8> = [unit(2, ""), unit(SEQUENCE, sequence)].into_iter().chain(units).flatten().collect();
        Packets::default().role(&packet)
    }

    #[test]
    fn a_picture_is_referred_to_unless_no_slot_or_every_slot_is_refreshed() {
        // An inter frame that is shown: resilience, probabilities, screen content, size, order, primary reference, slots.
        let frame = |slots: &str| format!("0 01 1 0 0 0 0 0000101 111 {slots} 0000");
        assert_eq!(role(PLAIN, &[&frame("00000000")]), Role::Unreferred);
        assert_eq!(role(PLAIN, &[&frame("00010000")]), Role::Referred);
        // Screen content has a flag more, and a resilient frame no primary reference.
        assert_eq!(role(PLAIN, &["0 01 1 0 0 1 1 0 0000101 111 00000000"]), Role::Unreferred);
        assert_eq!(role(PLAIN, &["0 01 1 1 0 0 0 0000101 00000000 111"]), Role::Unreferred);
        assert_eq!(role(FULL, &["0 01 1 0 0 0000111 0 111 00000000"]), Role::Unreferred);
        assert_eq!(role(FULL, &["0 01 1 0 0 0000111 0 111 1"]), Role::Referred);
        // Key frames, hidden and shown, and one that is shown once more.
        assert_eq!(role(PLAIN, &["0 00 1 0 0 0 0000101 00000000"]), Role::Begins);
        assert_eq!(role(PLAIN, &["0 00 0 1 0 0 0 0 0000101 11111111"]), Role::Referred);
        assert_eq!(role(PLAIN, &["1 000 00000000"]), Role::Referred);
        // Behind a hidden frame.
        assert_eq!(role(PLAIN, &["0 01 0 1 0 0 0 0 0000101 111 00010000", &frame("00000000")]), Role::Referred);
    }

    #[test]
    fn nothing_is_known_where_a_sequence_is_none_that_is_read() {
        let frame = "0 01 1 0 0 0 0 0000101 111 00000000";
        assert_eq!(role("000 1 1 00000 0111 0111", &[frame]), Role::Referred, "a still picture");
        assert_eq!(
            role(&FULL.replacen("1 1 0 1 00000", "1 1 1 1 00000", 1), &[frame]),
            Role::Referred,
            "a decoder model"
        );
        assert!((0..PLAIN.len()).step_by(9).all(|cut| role(&PLAIN[..cut], &[frame]) == Role::Referred));
    }

    #[test]
    fn a_packet_that_is_damaged_or_empty_is_kept() {
        for packet in [&[][..], &[0x32], &[0x32, 0x80], &[0x0a, 9, 0], &[0x32, 1, 0x10], &[0x12, 0, 0x32, 0x7f, 1]] {
            assert_eq!(Packets::default().role(packet), Role::Referred, "{packet:?}");
        }
    }
}
