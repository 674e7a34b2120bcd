//! Golden files of every format, at 25, 29.97 and 59.94 frames a second; those with time codes also with drop-frame ones.

use std::path::Path;

use clap::ValueEnum;
use protocol::event::TimeRange;
use protocol::plan::MediaInfo;

use super::Export;
use super::format::Format;
use super::media::{Media, Wishes};
use super::start::Start;

/// Length of the example's video, seconds.
const LENGTH_S: f64 = 3660.0;
/// Formats in which time codes stand.
const CODED: [Format; 5] = [Format::Edl, Format::EdlMarkers, Format::Fcpxml, Format::Csv, Format::Json];

/// Three ranges of a video of 61 minutes whose name and titles have what formats must escape.
pub fn example(average: f64, drop_frame: bool) -> Export {
    let info = MediaInfo {
        v: 1,
        duration_s: LENGTH_S,
        frames: (LENGTH_S * average) as u64,
        avg_fps: average,
        width: 1920,
        height: 1080,
        rotation: 0,
        mirrored: false,
        has_audio: true,
        audio_samples: 58_560_000,
        container: "mp4".to_owned(),
        codecs: vec!["h264".to_owned(), "aac".to_owned()],
        content_id: String::new(),
        notes: Vec::new(),
    };
    let wishes = Wishes { drop_frame, start: None };
    let media = Media::new("/media/a \"b\" & c's 100%.mp4", &info, Start::default(), wishes).unwrap();
    let range = |start_s, end_s, title: Option<&str>| TimeRange { start_s, end_s, title: title.map(str::to_owned) };
    let ranges = [
        range(600.0, 612.3, None),
        range(3601.1, 3620.0, Some("x = 1; #2 <b> \\ | \"q\", a --> b, é")),
        range(70.5, 95.2, Some("two\nlines")),
    ];
    Export::new(media, "a red box, or so", &ranges, 0.366)
}

#[test]
fn every_format_is_written_as_its_golden_file_at_every_rate() {
    let (ntsc, twice) = (30_000.0 / 1001.0, 60_000.0 / 1001.0);
    let cases = [
        ("25", 25.0, false),
        ("29.97", ntsc, false),
        ("59.94", twice, false),
        ("29.97-drop", ntsc, true),
        ("59.94-drop", twice, true),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/golden");
    let mut seen = 0;
    for (case, average, drop_frame) in cases {
        let formats: &[Format] = if drop_frame { &CODED } else { Format::value_variants() };
        for format in formats {
            let name = format.to_possible_value().expect("no format is hidden").get_name().to_owned();
            let file = dir.join(format!("{case}.{name}"));
            let golden = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let written = String::from_utf8(format.write(&example(average, drop_frame)).unwrap()).unwrap();
            for (written, golden) in written.lines().zip(golden.lines()) {
                assert_eq!(written, golden, "{}", file.display());
            }
            assert_eq!(written.len(), golden.len(), "{}: one is longer, or ends its lines otherwise", file.display());
            seen += 1;
        }
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), seen, "a golden file that nothing is compared with");
}
