//! Pictures of H.264 and H.265 that no other refers to (ITU-T H.264, 7.4.1, `nal_ref_idc`; ITU-T H.265, 7.4.2.2, sub-layer non-reference
//! pictures), and those behind which nothing before them is referred to (IDR pictures).
//!
//! How units lie in a packet: ISO/IEC 14496-15, 5.3.3.1 (`avcC`) and 8.3.3.1 (`hvcC`); start codes: Annex B of either.

use gstreamer as gst;

use super::Role;

/// Packets of a track, each of which holds one picture.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packets {
    codec: Codec,
    /// Bytes of a unit's length; 0 where start codes part them.
    length_bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Codec {
    H264,
    H265 {
        /// Temporal sub-layers that any sequence has at most; 0 while none is known.
        sub_layers: u8,
    },
}

impl Packets {
    /// Packets with these caps, where they hold whole frames of a format that is known here.
    pub(super) fn of(structure: &gst::StructureRef) -> Option<Self> {
        let told = |field: &str| structure.get::<&str>(field).ok();
        let header = structure.get::<gst::Buffer>("codec_data").ok();
        let header = header.as_ref().and_then(|header| header.map_readable().ok());
        let (is_framed, header) = (told("stream-format") != Some("byte-stream"), header.as_deref().unwrap_or(&[]));
        let length_bytes = |at: usize| if is_framed { header.get(at).map(|b| usize::from(b & 3) + 1) } else { Some(0) };
        match structure.name().as_str() {
            // One of two fields says nothing of the other.
            "video/x-h264" if told("coded-picture-structure") == Some("frame") => {
                Some(Packets { codec: Codec::H264, length_bytes: length_bytes(4)? })
            }
            "video/x-h265" => {
                let sub_layers = if is_framed { header.get(21)? >> 3 & 7 } else { 0 };
                Some(Packets { codec: Codec::H265 { sub_layers }, length_bytes: length_bytes(21)? })
            }
            _ => None,
        }
    }

    /// Role of a packet's picture. All parts of one say the same.
    pub(super) fn role(&mut self, packet: &[u8]) -> Role {
        let mut rest = packet;
        while let Some(unit) = self.next_unit(&mut rest) {
            if let Some(role) = self.unit(unit) {
                return role;
            }
        }
        Role::Referred
    }

    /// Takes the next unit off a packet; of one behind a start code its end is not looked for.
    fn next_unit<'p>(&self, rest: &mut &'p [u8]) -> Option<&'p [u8]> {
        if self.length_bytes > 0 {
            let (length, units) = rest.split_at_checked(self.length_bytes)?;
            let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            let (unit, units) = units.split_at_checked(length)?;
            *rest = units;
            return Some(unit);
        }
        let start = rest.windows(3).position(|code| code == [0, 0, 1])?;
        *rest = &rest[start + 3..];
        Some(*rest)
    }

    /// Role of the picture that a unit is part of; none where it is part of none.
    fn unit(&mut self, unit: &[u8]) -> Option<Role> {
        match (&mut self.codec, unit) {
            (Codec::H264, &[header, ..]) => match header & 0x1f {
                5 => Some(Role::Begins),
                1 | 2 if header & 0x60 == 0 => Some(Role::Unreferred),
                1..=4 => Some(Role::Referred),
                _ => None,
            },
            (Codec::H265 { sub_layers }, &[kind, layer, ref content @ ..]) => {
                let (kind, layer, sub_layer) = (kind >> 1 & 0x3f, (kind & 1) << 5 | layer >> 3, layer & 7);
                match kind {
                    // Pictures of a higher sub-layer may refer to one that those of its own do not.
                    0..=14 if kind % 2 == 0 && layer == 0 && sub_layer == *sub_layers => Some(Role::Unreferred),
                    19 | 20 if layer == 0 => Some(Role::Begins),
                    0..=31 => Some(Role::Referred),
                    33 => {
                        let most = content.first().map_or(u8::MAX, |sequence| (sequence >> 1 & 7) + 1);
                        *sub_layers = most.max(*sub_layers);
                        None
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&(unit.len() as u32).to_be_bytes()[..], unit].concat()).collect()
    }

    fn started(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&[0, 0, 1][..], unit].concat()).collect()
    }

    #[test]
    fn a_picture_of_h264_is_referred_to_unless_its_slices_say_that_it_is_not() {
        // An access unit delimiter, parameter sets, SEI, then slices.
        let before: [&[u8]; 4] = [&[9, 0xf0], &[0x67, 77], &[0x68, 0xce], &[6, 5]];
        use Role::{Begins, Referred, Unreferred};
        for (slice, role) in
            [(0x01, Unreferred), (0x21, Referred), (0x41, Referred), (0x65, Begins), (0x02, Unreferred)]
        {
            let slice_unit = [slice, 0x9a, 1];
            let units = [&before[..], &[&slice_unit[..]]].concat();
            let mut packets = Packets { codec: Codec::H264, length_bytes: 4 };
            assert_eq!(packets.role(&framed(&units)), role, "{slice:#x}");
            packets.length_bytes = 0;
            assert_eq!(packets.role(&started(&units)), role, "{slice:#x}");
        }
    }

    #[test]
    fn a_picture_of_h265_is_referred_to_unless_it_is_of_the_highest_sub_layer_and_says_so_or_begins() {
        let slice = |kind: u8, layer: u8, sub_layer: u8| [kind << 1 | layer >> 5, layer << 3 | (sub_layer + 1), 0x80];
        let sequence = |sub_layers: u8| [33 << 1, 1, (sub_layers - 1) << 1];
        let role = |sub_layers: u8, slice: [u8; 3]| {
            let mut packets = Packets { codec: Codec::H265 { sub_layers: 0 }, length_bytes: 0 };
            packets.role(&started(&[&sequence(sub_layers), &slice]))
        };
        let unreferred = [role(1, slice(0, 0, 0)), role(1, slice(8, 0, 0)), role(3, slice(2, 0, 2))];
        assert_eq!(unreferred, [Role::Unreferred; 3]);
        // Behind a picture of the kind CRA there may be some that refer to what was before it.
        assert_eq!([role(1, slice(1, 0, 0)), role(1, slice(16, 0, 0)), role(1, slice(21, 0, 0))], [Role::Referred; 3]);
        assert_eq!([19, 20].map(|kind| role(1, slice(kind, 0, 0))), [Role::Begins; 2]);
        assert_eq!(role(3, slice(0, 0, 1)), Role::Referred, "a higher sub-layer may refer to it");
        assert_eq!([role(1, slice(0, 1, 0)), role(1, slice(19, 1, 0))], [Role::Referred; 2], "another layer");
        let mut unknown = Packets { codec: Codec::H265 { sub_layers: 0 }, length_bytes: 0 };
        assert_eq!(unknown.role(&started(&[&slice(0, 0, 0)])), Role::Referred, "no sequence is known");
    }

    #[test]
    fn nothing_is_known_of_fields() {
        crate::pipeline::init().unwrap();
        let packets = |name: &str, structure: &str| {
            let structure = gst::Structure::builder(name).field("coded-picture-structure", structure);
            Packets::of(&structure.field("stream-format", "byte-stream").build())
        };
        assert!(packets("video/x-h264", "frame").is_some());
        assert_eq!(packets("video/x-h264", "field"), None);
        assert_eq!(packets("video/mpeg", "frame"), None);
    }

    #[test]
    fn a_packet_that_is_damaged_or_empty_is_kept() {
        for length_bytes in [0, 2, 4] {
            let mut packets = Packets { codec: Codec::H264, length_bytes };
            for packet in [&[][..], &[0], &[0xff; 4], &[0, 0, 0, 9, 1], &[0, 0, 0, 0]] {
                assert_eq!(packets.role(packet), Role::Referred, "{length_bytes} {packet:?}");
            }
        }
    }
}
