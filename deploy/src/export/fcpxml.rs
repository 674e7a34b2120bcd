//! Final Cut Pro XML 1.9: the ranges cut together, each with a marker.
//!
//! Elements, attributes and their order: Apple's FCPXML 1.9 document type definition.

use super::Export;
use super::media::Pictures;

/// A library with one project: a sequence whose spine is the ranges.
///
/// # Errors
/// As [`Export::pictures`].
pub fn fcpxml(export: &Export) -> Result<String, String> {
    let pictures = export.pictures("fcpxml")?;
    let time = |frames: u64| time(pictures, frames);
    let [width, height] = pictures.size;
    let (file, name, uri) = (escaped(&export.media.name()), escaped(&export.name()), export.media.uri());
    let sound = if export.media.has_audio { r#" hasAudio="1" audioSources="1""# } else { "" };
    let codes = if pictures.codes.is_drop() { "DF" } else { "NDF" };
    let (start, duration, frame) = (time(pictures.first), time(pictures.count), time(1));
    let note = escaped(&export.notes().join("; "));
    let mut spine = String::new();
    let mut offset = 0;
    for cut in &export.cuts {
        let (title, length) = (escaped(&cut.title), cut.frames.end - cut.frames.start);
        let (at, from, long) = (time(offset), time(pictures.first + cut.frames.start), time(length));
        spine += &format!(
            r#"            <asset-clip ref="r2" name="{title}" offset="{at}" start="{from}" duration="{long}" tcFormat="{codes}">
              <marker start="{from}" duration="{frame}" value="{title}" note="{note}"/>
            </asset-clip>
"#
        );
        offset += length;
    }
    let total = time(offset);
    Ok(format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE fcpxml>
<fcpxml version="1.9">
  <resources>
    <format id="r1" frameDuration="{frame}" width="{width}" height="{height}"/>
    <asset id="r2" name="{file}" start="{start}" duration="{duration}" hasVideo="1" format="r1" videoSources="1"{sound}>
      <media-rep kind="original-media" src="{uri}"/>
    </asset>
  </resources>
  <library>
    <event name="Vidi">
      <project name="{name}">
        <sequence format="r1" duration="{total}" tcStart="0s" tcFormat="{codes}">
          <note>{note}</note>
          <spine>
{spine}          </spine>
        </sequence>
      </project>
    </event>
  </library>
</fcpxml>
"#
    ))
}

/// Time of so many frames, as a fraction of a second.
fn time(pictures: &Pictures, frames: u64) -> String {
    match (frames * u64::from(pictures.rate.denominator), pictures.rate.numerator) {
        (0, _) => "0s".to_owned(),
        (seconds, 1) => format!("{seconds}s"),
        (seconds, parts) => format!("{seconds}/{parts}s"),
    }
}

/// A text as it stands between quotation marks or tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
