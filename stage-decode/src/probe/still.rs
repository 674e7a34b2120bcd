//! Recognition of files that are pictures, still or animated: none of GStreamer's demuxers gives their frames.

/// What a file is that starts with these bytes, if it is a picture.
pub(super) fn kind(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'G', b'I', b'F', b'8', ..] => Some("a GIF"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("a WebP picture"),
        [0x89, b'P', b'N', b'G', ..] => Some("a PNG picture"),
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Some("a BMP picture"),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some("a TIFF picture"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'h', b'e', b'i', b'c' | b'x', ..] => Some("a HEIF picture"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'm', b'i' | b's', b'f', b'1', ..] => Some("a HEIF picture"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', b'f' | b's', ..] => Some("an AVIF picture"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_known_by_their_first_bytes_and_films_are_none() {
        assert_eq!(kind(b"GIF89a\x40\0"), Some("a GIF"));
        assert_eq!(kind(b"RIFF\0\0\0\0WEBPVP8X"), Some("a WebP picture"));
        for brand in [b"avif", b"avis"] {
            assert_eq!(kind(&[&b"\0\0\0\x1cftyp"[..], brand].concat()), Some("an AVIF picture"));
        }
        for head in [&b"RIFF\0\0\0\0AVI LIST"[..], b"\0\0\0\x20ftypisom", b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF", b""] {
            assert_eq!(kind(head), None, "{head:?}");
        }
    }
}
