//! Ranges for programs: CSV (RFC 4180, with a line of names) and JSON, with the same fields.
//!
//! `start_s`, `end_s` (seconds with the decimals that are known), `start_tc`, `end_tc` (time codes, the end without its frame;
//! empty for sound alone), `title`, `query`, `resolution_s`.

use serde_json::json;

use super::{Cut, Export};

/// A line of names and one for each range.
pub fn csv(export: &Export) -> String {
    let mut table = "start_s,end_s,start_tc,end_tc,title,query,resolution_s\n".to_owned();
    for cut in &export.cuts {
        let ticks = export.ticks(cut);
        let [start, end] = [ticks.start, ticks.end].map(|tick| export.clock().number(tick));
        let [start_tc, end_tc] = codes(export, cut);
        let (title, query) = (field(&cut.title), field(&export.query));
        table += &format!("{start},{end},{start_tc},{end_tc},{title},{query},{}\n", export.resolution_s);
    }
    table
}

/// A list of objects, one for each range.
pub fn json(export: &Export) -> String {
    let object = |cut: &Cut| {
        let ticks = export.ticks(cut);
        let [start_tc, end_tc] = codes(export, cut);
        json!({
            "start_s": export.clock().seconds(ticks.start),
            "end_s": export.clock().seconds(ticks.end),
            "start_tc": start_tc,
            "end_tc": end_tc,
            "title": cut.title,
            "query": export.query,
            "resolution_s": export.resolution_s,
        })
    };
    let list: serde_json::Value = export.cuts.iter().map(object).collect();
    format!("{list:#}\n")
}

/// Time codes of a range's first frame and of the one behind its last.
fn codes(export: &Export, cut: &Cut) -> [String; 2] {
    match export.media.pictures {
        Some(pictures) => [cut.frames.start, cut.frames.end].map(|frame| pictures.codes.label(pictures.first + frame)),
        None => [String::new(), String::new()],
    }
}

/// A field as it stands between commas.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    #[test]
    fn sound_alone_has_no_time_codes() {
        let mut export = example(25.0, false);
        export.media.pictures = None;
        assert!(csv(&export).contains("\n70.5,95.2,,,"), "{}", csv(&export));
        assert!(json(&export).contains(r#""start_tc": """#));
    }
}
