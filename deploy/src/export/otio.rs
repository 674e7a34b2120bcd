//! OpenTimelineIO: the ranges cut together, each with a marker.
//!
//! Schema: <https://opentimelineio.readthedocs.io/en/latest/tutorials/otio-file-format-specification.html>, `Clip.2` of 0.15
//! and later.

use std::ops::Range;

use serde_json::{Value, json};

use super::{Cut, Export};

/// A timeline with one video track of the ranges.
///
/// # Errors
/// As [`Export::pictures`].
pub fn otio(export: &Export) -> Result<String, String> {
    let pictures = export.pictures("otio")?;
    let rate = pictures.rate.per_second();
    let time = |frames: u64| json!({ "OTIO_SCHEMA": "RationalTime.1", "rate": rate, "value": frames as f64 });
    // Times of the media count from its own time code on.
    let range = |frames: &Range<u64>| {
        json!({
            "OTIO_SCHEMA": "TimeRange.1",
            "start_time": time(pictures.first + frames.start),
            "duration": time(frames.end - frames.start),
        })
    };
    let reference = json!({
        "OTIO_SCHEMA": "ExternalReference.1",
        "name": export.media.name(),
        "metadata": {},
        "available_range": range(&(0..pictures.count)),
        "available_image_bounds": null,
        "target_url": export.media.uri(),
    });
    let clip = |cut: &Cut| {
        let marker = json!({
            "OTIO_SCHEMA": "Marker.2",
            "name": cut.title,
            "comment": export.query,
            "color": "GREEN",
            "marked_range": range(&cut.frames),
            "metadata": {},
        });
        json!({
            "OTIO_SCHEMA": "Clip.2",
            "name": cut.title,
            "metadata": {},
            "enabled": true,
            "effects": [],
            "markers": [marker],
            "source_range": range(&cut.frames),
            "media_references": { "DEFAULT_MEDIA": reference },
            "active_media_reference_key": "DEFAULT_MEDIA",
        })
    };
    let track = composition("Track.1", "ranges", export.cuts.iter().map(clip).collect(), Some("Video"));
    let timeline = json!({
        "OTIO_SCHEMA": "Timeline.1",
        "name": export.name(),
        "metadata": { "vidi": { "query": export.query, "notes": export.notes(), "resolution_s": export.resolution_s } },
        "global_start_time": null,
        "tracks": composition("Stack.1", "tracks", vec![track], None),
    });
    Ok(format!("{timeline:#}\n"))
}

/// A track, or a stack of such.
fn composition(schema: &str, name: &str, children: Vec<Value>, kind: Option<&str>) -> Value {
    let mut composition = json!({
        "OTIO_SCHEMA": schema,
        "name": name,
        "metadata": {},
        "enabled": true,
        "effects": [],
        "markers": [],
        "source_range": null,
        "children": children,
    });
    if let Some(kind) = kind {
        composition["kind"] = json!(kind);
    }
    composition
}
