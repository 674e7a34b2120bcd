//! Key frames of VP8 (RFC 6386, 9.1) and VP9 (VP9 Bitstream & Decoding Process Specification, 6.2), behind which nothing before them is referred
//! to. Which other pictures are referred to is not looked at: their encoders refer to nearly all.

use super::Role;

/// Role of a packet of VP8: a frame, whose first bit says what it is.
pub(super) fn role_of_vp8(packet: &[u8]) -> Role {
    match packet.first() {
        Some(tag) if tag & 1 == 0 => Role::Begins,
        _ => Role::Referred,
    }
}

/// Role of a packet of VP9: a frame, or a hidden one and another behind it.
pub(super) fn role_of_vp9(packet: &[u8]) -> Role {
    let Some(&header) = packet.first() else { return Role::Referred };
    // Two bits of a mark, two of the profile, one more bit where that is 3, then whether a frame is shown once more, and the type.
    let rest = if header >> 4 & 3 == 3 { header << 5 } else { header << 4 };
    if header >> 6 == 2 && rest >> 6 == 0 { Role::Begins } else { Role::Referred }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_frame_begins() {
        assert_eq!([0x50, 0x51].map(|tag| role_of_vp8(&[tag, 2, 0])), [Role::Begins, Role::Referred]);
        let frames =
            [0b1000_0010, 0b1000_0110, 0b1000_1000, 0b1010_0010, 0b1011_0000, 0b1011_0010, 0b1011_0100, 0b0100_0000];
        let begins = [true, false, false, true, true, false, false, false];
        assert_eq!(frames.map(|header| role_of_vp9(&[header]) == Role::Begins), begins);
        assert_eq!([role_of_vp8(&[]), role_of_vp9(&[])], [Role::Referred; 2]);
    }
}
