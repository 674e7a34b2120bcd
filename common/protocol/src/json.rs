//! JSON as clients write it: behind a byte-order mark, cut short, or with what JSON has no word for.

use crate::job_id::JobId;

/// UTF-8's byte-order mark, which some editors and shells write before a text.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Key of a job's name.
const JOB: &[u8] = b"job";

/// A text without the byte-order mark before it, which is no JSON (RFC 8259, 8.1).
pub fn unmarked(body: &[u8]) -> &[u8] {
    body.strip_prefix(MARK).unwrap_or(body)
}

/// Whether a text begins as an object does, behind a byte-order mark and white space.
pub fn is_object(body: &[u8]) -> bool {
    unmarked(body).trim_ascii_start().first() == Some(&b'{')
}

/// Job that an object names as `job`, though the object is cut short or something else in it is no JSON. Whole objects are
/// for a parser.
pub fn named_job(body: &[u8]) -> Option<JobId> {
    let mut left = unmarked(body);
    let (mut depth, mut is_named) = (0, false);
    loop {
        left = left.trim_ascii_start();
        match left {
            [] => return None,
            [b'"', rest @ ..] => {
                let (text, behind) = string(rest)?;
                if is_named {
                    return JobId::new(std::str::from_utf8(text).ok()?).ok();
                }
                let value = behind.trim_ascii_start().strip_prefix(b":");
                is_named = depth == 1 && text == JOB && value.is_some();
                left = value.filter(|_| is_named).unwrap_or(behind);
                continue;
            }
            [b'{' | b'[', ..] => depth += 1,
            [b'}' | b']', ..] => depth -= 1,
            _ => {}
        }
        // Its value is no text.
        is_named = false;
        left = &left[1..];
    }
}

/// What a string holds, as it is written, and what follows it; none for one without an end.
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut is_escaped = false;
    let end = text.iter().position(|&byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })?;
    Some((&text[..end], &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_of_an_object_that_is_no_json_is_known_where_its_name_is_whole() {
        for (text, named) in [
            (r#"{"job": "a1", "fps": NaN}"#, Some("a1")),
            (r#"{"fps": NaN, "job": "a1"}"#, Some("a1")),
            (r#"{"job": "a1", "query": "cut sh"#, Some("a1")),
            ("\u{feff} \n\t{ \"job\"\r\n:\"a1\"", Some("a1")),
            (
                r#"{"query": "\\\"job\\\": \\\"no\\\"", "span": [1, Infinity], "x": {"job": "no"}, "job": "a1",}"#,
                Some("a1"),
            ),
            (r#"{"query": "job", "job": "a1", "job": "a2", "#, Some("a1")),
            (r#"{"job": "a"#, None),
            (r#"{"job": NaN, "query": "a1"}"#, None),
            (r#"{"job": ["a1"]"#, None),
            (r#"{"job": "no name", "fps": NaN}"#, None),
            (r#"{"x": {"job": "a1"}, "#, None),
            (r#"["job": "a1""#, Some("a1")),
            ("", None),
            ("{", None),
        ] {
            assert_eq!(named_job(text.as_bytes()).as_ref().map(JobId::as_str), named, "{text}");
        }
    }
}
