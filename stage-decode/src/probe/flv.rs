//! Times that the tags of an FLV file state (Adobe, Video File Format Specification 10.1, annex E), and the length in its header.
//!
//! GStreamer 1.22 takes two seconds between the times of two pictures for the beginning of another recording, and moves what
//! follows: where pictures are stored in another order than they are shown in, a gap gets longer with each of them.

use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;
use crate::timeline::{MAX_LISTED, Timeline};

/// Bytes of a tag's header.
const HEADER: u64 = 11;
/// Bytes behind a tag, which repeat its size.
const TRAILER: u64 = 4;
/// Kinds of tags: sound, a picture, and data about both.
const SOUND: u8 = 8;
const PICTURE: u8 = 9;
const SCRIPT: u8 = 18;
/// Bytes of the header's data that are searched, of which indices of key frames may be more.
const STATED_BYTES: u64 = 64 << 10;
/// Seconds by which a header may say more than the packets: one that says more is of a file that is not there as a whole.
const LAST_S: f64 = 1.0;
/// Milliseconds between two packets of a track from which on GStreamer moves times.
const JUMP_MS: i64 = 2_000;

/// Times that the packets of a file state, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Times {
    pictures: Span,
    sound: Span,
    /// Times at which pictures are shown, in nanoseconds, in file order; the first [`MAX_LISTED`].
    shown: Vec<u64>,
    /// Whether times go back, as where recordings follow each other.
    begins_anew: bool,
    /// Whether the file does not end where its last tag does, or is shorter than its header says.
    is_cut: bool,
    /// Position of the tag that is cut, and how many bytes of its content are there.
    cut: Option<(u64, u64)>,
    /// Seconds that the header says the file lasts.
    stated_s: Option<f64>,
}

/// Times of a track.
#[derive(Debug, Default)]
struct Span {
    /// Least, greatest and last one; none before the first packet.
    bounds: Option<[i64; 3]>,
    jumps: bool,
}

impl Span {
    fn note(&mut self, time: i64) {
        let [least, most, last] = self.bounds.unwrap_or([time; 3]);
        self.jumps |= (time - last).abs() >= JUMP_MS;
        self.bounds = Some([least.min(time), most.max(time), time]);
    }
}

impl Times {
    /// The times of a file; none of another format.
    ///
    /// # Errors
    /// That of a read, and too many tags.
    pub(super) fn read(bytes: &mut Bytes<'_>) -> io::Result<Option<Self>> {
        if bytes.size() < 9 || &bytes.array::<3>(0)? != b"FLV" {
            return Ok(None);
        }
        let (mut times, mut stored) = (Times::default(), [i64::MIN; 2]);
        let mut at = u64::from(bytes.u32(5)?).saturating_add(TRAILER);
        while at.saturating_add(HEADER) <= bytes.size() {
            bytes.spend(1)?;
            let [kind, s2, s1, s0, t2, t1, t0, t3, ..] = bytes.array::<{ HEADER as usize }>(at)?;
            let (kind, size) = (kind & 0x1f, u64::from(u32::from_be_bytes([0, s2, s1, s0])));
            let time = i64::from(i32::from_be_bytes([t3, t2, t1, t0]));
            let body = at + HEADER;
            if kind == SCRIPT && times.stated_s.is_none() {
                times.read_header(bytes, body, size)?;
            }
            // What is no tag is not read by GStreamer either.
            if ![SOUND, PICTURE, SCRIPT].contains(&kind) {
                break;
            }
            let there = bytes.size() - body;
            if size > there && kind != SCRIPT && there > 0 {
                times.cut = Some((at, there));
            }
            if let Some(later) = later(bytes, kind, body, size.min(there))? {
                let last = &mut stored[usize::from(kind == PICTURE)];
                times.begins_anew |= time < last.saturating_sub(JUMP_MS);
                *last = time;
                times.note(kind, time + later);
            }
            at = body + size + TRAILER;
        }
        times.is_cut |= at != bytes.size();
        Ok(Some(times))
    }

    /// What the demuxer is to see of a tag that is cut, which it leaves out otherwise: that it is no longer than what is there, and its end.
    pub(super) fn cut_tag(&self) -> Vec<Overlay> {
        let Some((at, there)) = self.cut else { return Vec::new() };
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        let length = Overlay { at: at + 1, bytes: size(there)[1..].to_vec() };
        vec![length, Overlay { at: at + HEADER + there, bytes: size(there + HEADER).to_vec() }]
    }

    /// Notes what the header's data say of the file, if they do (`onMetaData`, E.5).
    fn read_header(&mut self, bytes: &mut Bytes<'_>, body: u64, size: u64) -> io::Result<()> {
        let mut data = vec![0; size.min(STATED_BYTES).min(bytes.size() - body) as usize];
        bytes.read(body, &mut data)?;
        if data.starts_with(b"\x02\0\x0aonMetaData") {
            self.stated_s = number(&data, "duration").filter(|seconds| *seconds > 0.0);
            self.is_cut |= number(&data, "filesize").is_some_and(|whole| whole > bytes.size() as f64);
        }
        Ok(())
    }

    fn note(&mut self, kind: u8, time: i64) {
        if kind == SOUND {
            return self.sound.note(time);
        }
        self.pictures.note(time);
        if self.shown.len() <= MAX_LISTED {
            self.shown.push(u64::try_from(time).unwrap_or(0) * 1_000_000);
        }
    }

    /// Whether GStreamer's times of the pictures cannot be believed.
    pub(super) fn moves_pictures(&self) -> bool {
        self.pictures.jumps
    }

    /// Seconds that the header says, as in ffprobe: up to the end of the last packet, wherever the first begins. Without a header, or
    /// where more of the file is missing than [`LAST_S`] or a part of its last tag, those from the first packet to the end of the
    /// last, which are that many nanoseconds long. None where recordings follow each other.
    pub(super) fn seconds(&self, picture_ns: u64, sound_ns: u64) -> Option<f64> {
        if self.begins_anew {
            return None;
        }
        let tracks = [(&self.pictures, picture_ns), (&self.sound, sound_ns)];
        let spans = tracks.iter().filter_map(|(track, last_ns)| Some((track.bounds?, *last_ns as f64 / 1e6)));
        let bounds = spans.map(|([least, most, _], last_ms)| (least as f64, most as f64 + last_ms));
        let (start, end) = bounds.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
        let stated_s = self.stated_s.filter(|seconds| !self.is_cut && *seconds < end / 1e3 + LAST_S);
        Some(stated_s.unwrap_or((end - start) / 1e3))
    }

    /// Seconds by which a picture is shown at most before or after its number says, were the rate even.
    pub(super) fn unevenness_s(&self) -> f64 {
        let shown = self.shown.iter().map(|&at| Some((at, true)));
        if self.begins_anew { 0.0 } else { Timeline::new(shown).unevenness_s() }
    }
}

/// Milliseconds after its time at which a tag's packet is shown; none for one that is no picture or sound: what a decoder is told at
/// its start and end (packet types 0 and 2 of H.264 and AAC), and commands (frame type 5).
fn later(bytes: &mut Bytes<'_>, kind: u8, body: u64, size: u64) -> io::Result<Option<i64>> {
    const AAC: u8 = 10;
    const H264: u8 = 7;
    if kind == SCRIPT || size < 2 {
        return Ok(None);
    }
    let [first, packet] = bytes.array(body)?;
    if kind == SOUND {
        return Ok((first >> 4 != AAC || packet == 1).then_some(0));
    }
    if first & 0xf != H264 || size < 5 {
        return Ok((first >> 4 != 5).then_some(0));
    }
    let [_, _, c2, c1, c0] = bytes.array(body)?;
    Ok((packet == 1).then(|| i64::from(i32::from_be_bytes([c2, c1, c0, 0]) >> 8)))
}

/// The number of that name among properties of a header (AMF 0: length and name, kind 0, and eight bytes).
fn number(data: &[u8], name: &str) -> Option<f64> {
    let property = [&(name.len() as u16).to_be_bytes()[..], name.as_bytes(), &[0]].concat();
    let at = data.windows(property.len()).position(|bytes| bytes == property)?;
    data.get(at + property.len()..)?.first_chunk().map(|bytes| f64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    fn tag(kind: u8, time: u32, content: &[u8]) -> Vec<u8> {
        let ([t3, t2, t1, t0], size) = (time.to_be_bytes(), content.len() as u32);
        let header = [&[kind][..], &size.to_be_bytes()[1..], &[t2, t1, t0, t3, 0, 0, 0]].concat();
        [&header[..], content, &(size + 11).to_be_bytes()].concat()
    }

    fn picture(time: u32, later: i32) -> Vec<u8> {
        tag(PICTURE, time, &[&[0x27, 1][..], &later.to_be_bytes()[1..], b"x"].concat())
    }

    fn read(tags: &[Vec<u8>]) -> Times {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[&b"FLV\x01\x05\0\0\0\x09\0\0\0\0"[..], &tags.concat()].concat()).unwrap();
        let media = MediaFile::new("a.flv".into(), file).unwrap();
        Times::read(&mut Bytes::new(&media, &|| false).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn a_gap_is_as_long_as_the_tags_say_and_what_is_no_picture_has_no_time() {
        let starts = [tag(PICTURE, 0, &[0x17, 0, 0, 0, 0]), tag(SOUND, 90, &[0xaf, 0]), tag(SCRIPT, 0, b"onMetaData")];
        let pictures = [picture(0, 200), picture(100, 10_500), picture(200, 100), picture(10_500, 0)];
        let end = [tag(SOUND, 177, &[0xaf, 1, 0]), tag(PICTURE, 60_000, &[0x17, 2, 0, 0, 0])];
        let times = read(&[&starts[..], &pictures, &end].concat());
        assert!(times.moves_pictures() && !times.sound.jumps);
        assert_eq!(times.seconds(100_000_000, 23_000_000), Some(10.523));
        assert!((3.3..3.4).contains(&times.unevenness_s()), "{times:?}");
    }

    #[test]
    fn the_header_says_how_long_a_whole_file_lasts_and_not_one_that_is_cut() {
        let property = |name: &str, value: f64| {
            [&(name.len() as u16).to_be_bytes()[..], name.as_bytes(), &[0], &value.to_be_bytes()].concat()
        };
        let header = |seconds: f64, size: f64| {
            let properties = [property("width", 96.0), property("duration", seconds), property("filesize", size)];
            tag(SCRIPT, 0, &[b"\x02\0\x0aonMetaData\x08\0\0\0\x03", &properties.concat()[..], &[0, 0, 9]].concat())
        };
        let pictures: Vec<_> = (2..52).map(|n| picture(n * 100, 0)).collect();
        let seconds = |header: Vec<u8>, pictures: &[Vec<u8>]| {
            read(&[&[header], pictures].concat()).seconds(100_000_000, 0).expect("a length")
        };
        let spanned = seconds(tag(SCRIPT, 0, b"onMetaData"), &pictures);
        assert_eq!([spanned, seconds(header(5.2, 9.0), &pictures)], [5.0, 5.2]);
        let cut = [&pictures[..49], &[pictures[49][..15].to_vec()]].concat();
        assert_eq!(seconds(header(5.2, 9.0), &cut), 5.0, "within a tag, of which a part is there");
        assert_eq!(seconds(header(5.2, 9e6), &pictures[..49]), 4.9, "between two tags, by the size");
        assert_eq!(seconds(header(5.2, 0.0), &pictures[..30]), 3.0, "between two tags, by the times");
        assert_eq!(seconds(header(0.0, 0.0), &pictures), 5.0, "a recording whose header was not completed");
    }

    #[test]
    fn even_times_and_recordings_that_follow_each_other_are_gstreamers() {
        let even: Vec<_> = (0..50).map(|n| picture(n * 100, 40)).collect();
        let times = read(&even);
        assert!(!times.moves_pictures() && times.seconds(100_000_000, 0) == Some(5.0) && times.unevenness_s() < 1e-3);
        let twice = read(&[&even[..], &even].concat());
        assert!(twice.moves_pictures() && twice.seconds(0, 0).is_none() && twice.unevenness_s() == 0.0);
        let cut = |there: usize| read(&[even[0].clone(), even[1][..there].to_vec()]);
        assert_eq!([cut(16), cut(12), cut(11), cut(9)].map(|times| times.shown.len()), [2, 1, 1, 1]);
        let at = 13 + even[0].len() as u64;
        let length = Overlay { at: at + 1, bytes: vec![0, 0, 5] };
        assert_eq!(cut(16).cut_tag(), [length, Overlay { at: at + 16, bytes: vec![0, 0, 0, 16] }]);
        assert_eq!([cut(11).cut_tag(), read(&even).cut_tag()], [vec![], vec![]]);
    }
}
