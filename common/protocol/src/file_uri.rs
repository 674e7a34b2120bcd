//! Paths as text, and back: what travels and what is configured is UTF-8, and a file's name need not be.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Beginning of a `file:` URI.
const SCHEME: &str = "file:";
/// Characters of a URI's path that stand for themselves (RFC 3986, `pchar` without those that programs trip over).
const PLAIN: &[u8] = b"-._~/";

/// A path as a job's `video` or a configuration names it: as it is, or as a [`file:` URI](uri) where it is no UTF-8 or would be
/// taken for a URI.
pub fn text(path: &Path) -> String {
    match path.to_str() {
        Some(text) if local_part(text).is_none() => text.to_owned(),
        _ => uri(path),
    }
}

/// `file:` URI of a path (RFC 8089), with every byte but letters, digits and `-._~/` percent-encoded. Of a relative path it is
/// `file:` and that path, which only [`path`] understands.
pub fn uri(path: &Path) -> String {
    let mut uri = SCHEME.to_owned();
    if path.is_absolute() {
        uri += "//";
    }
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || PLAIN.contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri
}

/// Path that a text names, which may be a `file:` URI. A `%` without two hexadecimal digits stands for itself.
pub fn path(text: &str) -> PathBuf {
    let Some(local) = local_part(text) else { return PathBuf::from(text) };
    let mut bytes = Vec::with_capacity(local.len());
    let mut left = local.as_bytes();
    while let [first, more @ ..] = left {
        let escaped = more.get(..2).filter(|hex| *first == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        left = if byte.is_some() { &more[2..] } else { more };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// What follows scheme and host of a `file:` URI; none for what is no such URI, or one of another host.
fn local_part(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_at_checked(SCHEME.len())?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let Some(authority) = rest.strip_prefix("//") else { return Some(rest) };
    let (host, path) = authority.split_at(authority.find('/')?);
    matches!(host, "" | "localhost").then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_named_by_a_text_that_leads_back_to_it() {
        let bytes = |path: &[u8]| PathBuf::from(OsString::from_vec(path.to_vec()));
        for (named, expected) in [
            (bytes(b"/media/a b.mp4"), "/media/a b.mp4"),
            (bytes("/media/\u{e9}.mp4".as_bytes()), "/media/\u{e9}.mp4"),
            (bytes(b"/media/100%41.mp4"), "/media/100%41.mp4"),
            (bytes(b"/media/\xff \xe9%.mp4"), "file:///media/%FF%20%E9%25.mp4"),
            (bytes(b"rel/\xff"), "file:rel/%FF"),
            (bytes(b"file:x"), "file:file%3Ax"),
            (bytes(b""), ""),
        ] {
            assert_eq!(text(&named), expected);
            assert_eq!(path(expected), named);
        }
    }

    #[test]
    fn uris_of_this_host_lead_to_paths_however_they_are_written() {
        for (uri, named) in [
            ("FILE:/x%20y.mp4", "/x y.mp4"),
            ("file://localhost/x.mp4", "/x.mp4"),
            ("file:///100%.mp4", "/100%.mp4"),
            ("file://elsewhere/x.mp4", "file://elsewhere/x.mp4"),
            ("file://elsewhere", "file://elsewhere"),
            ("/file:/x", "/file:/x"),
            ("\u{e9}\u{e9}\u{e9}", "\u{e9}\u{e9}\u{e9}"),
        ] {
            assert_eq!(path(uri), Path::new(named));
        }
    }
}
