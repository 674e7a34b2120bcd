//! Recognition of files that name media elsewhere: playlists, manifests, shortcuts and timelines.
//!
//! GStreamer's own detection knows some of them only, and others as plain text; the list of elements that may be plugged
//! (`pipeline::parser`) is what keeps any of them from being followed.

/// Number of bytes at the start of a file that are looked at.
pub(super) const HEAD_BYTES: usize = 4096;

/// First words of a file, and what such a file is.
const STARTS: [(&str, &str); 15] = [
    ("#extm3u", "an HLS or M3U playlist"),
    ("ffconcat ", "a list of files to join (concat)"),
    ("[playlist]", "a PLS playlist"),
    ("[internetshortcut]", "an internet shortcut"),
    ("[reference]", "an ASX redirector"),
    ("asf ", "an ASX redirector"),
    ("rtsptext", "an RTSP redirector"),
    ("smiltext", "a SMIL presentation"),
    ("v=0\n", "a session description (SDP)"),
    ("v=0\r", "a session description (SDP)"),
    ("http://", "a list of addresses"),
    ("https://", "a list of addresses"),
    ("rtsp://", "a list of addresses"),
    ("mms://", "a list of addresses"),
    ("file://", "a list of addresses"),
];

/// Elements of an XML document, one of which it has near its start, and what such a document is.
const ELEMENTS: [(&str, &str); 11] = [
    ("<mpd", "a DASH manifest"),
    ("<smoothstreamingmedia", "a Smooth Streaming manifest"),
    ("<asx", "an ASX redirector"),
    ("<smil", "a SMIL presentation"),
    ("<playlist", "an XSPF playlist"),
    ("<ges", "an editing timeline"),
    ("<fcpxml", "an editing timeline"),
    ("<xmeml", "an editing timeline"),
    ("<mlt", "an editing timeline"),
    ("<rss", "a feed"),
    ("<feed", "a feed"),
];

/// What a file is that starts with these bytes, if it names media elsewhere.
pub(super) fn kind(head: &[u8]) -> Option<&'static str> {
    let text = text(head);
    let start = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    if start.starts_with('<') {
        return ELEMENTS.iter().find(|(element, _)| has_element(start, element)).map(|(_, what)| *what);
    }
    STARTS.iter().find(|(first, _)| start.starts_with(first)).map(|(_, what)| *what)
}

/// Whether a text has an element of that name, with attributes or without.
fn has_element(text: &str, element: &str) -> bool {
    let ends = |rest: &str| rest.starts_with(|c: char| c.is_whitespace() || matches!(c, '>' | '/'));
    text.match_indices(element).any(|(at, _)| ends(&text[at + element.len()..]))
}

/// The bytes as lower-case text, in UTF-16 if they say so.
fn text(head: &[u8]) -> String {
    let wide = |from: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = head.as_chunks::<2>().0.iter().map(|pair| from(*pair)).collect();
        String::from_utf16_lossy(&units)
    };
    let text = match head {
        [0xff, 0xfe, ..] => wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => wide(u16::from_be_bytes),
        _ => String::from_utf8_lossy(head).into_owned(),
    };
    text.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_known_whatever_their_case_encoding_and_white_space() {
        assert_eq!(kind(b"\xef\xbb\xbf \r\n#ExtM3U\n"), Some("an HLS or M3U playlist"));
        assert_eq!(kind(b"<?xml version=\"1.0\"?>\n<!-- x -->\n<MPD\ntype='static'>"), Some("a DASH manifest"));
        let wide: Vec<u8> =
            "\u{feff}<SmoothStreamingMedia Duration='0'>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(kind(&wide), Some("a Smooth Streaming manifest"));
        assert_eq!(kind(b"[InternetShortcut]\r\nURL=http://a"), Some("an internet shortcut"));
    }

    #[test]
    fn media_and_other_files_are_no_references() {
        for head in
            [&b"\0\0\0\x20ftypisom"[..], b"RIFF\0\0\0\0AVI ", b"<svg><mpdx/></svg>", b"A letter.", b"v=1\n", b""]
        {
            assert_eq!(kind(head), None, "{head:?}");
        }
    }
}
