//! Files whose packets were overwritten after they were made: every frame outside of the damage is the undamaged file's
//! frame of the same number, and those that stand in are named.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{Kept, make, picture, request, run, stage, words};
use protocol::message::{DecodeRequest, Segment};
use protocol::plan::{FrameGrid, MediaInfo, MediaPlan};
use protocol::stage::Stage;
use tempfile::tempdir;

const SIZE: &str = "192x144";
const RATE: f64 = 25.0;
const SECONDS: f64 = 6.0;
const FRAMES: usize = 150;
/// Frames from one keyframe to the next.
const GROUP: usize = 30;
const X264: &str = "-c:v libx264 -preset veryfast -bf 3 -g 30 -keyint_min 30 -sc_threshold 0";

/// A compressed picture as it lies in the file.
#[derive(Debug)]
struct Packet {
    /// Place in the order in which pictures are shown.
    number: usize,
    bytes: Range<u64>,
}

/// The packets of a file's picture, in the order of the file.
fn packets(path: &Path) -> Vec<Packet> {
    let mut line = words("-v error -select_streams v:0 -show_entries packet=pts,pos,size -of csv=p=0");
    line.push(path.to_str().unwrap().to_owned());
    let text = String::from_utf8(run("ffprobe", &line)).unwrap();
    let field = |text: &str| text.trim().parse::<i64>().unwrap();
    let rows: Vec<[i64; 3]> = text
        .lines()
        .map(|row| {
            let mut fields = row.split(',').map(field);
            [(); 3].map(|()| fields.next().unwrap())
        })
        .collect();
    // ffprobe tells where a Matroska block or an FLV tag starts; so long are their headers.
    let header = match path.extension().and_then(|e| e.to_str()) {
        Some("mkv" | "webm") => 4,
        Some("flv") => 16,
        _ => 0,
    };
    let place = |[pts, size, at]: [i64; 3]| {
        let at = (at + header) as u64;
        let number = rows.iter().filter(|row| row[0] < pts).count();
        Packet { number, bytes: at..at + size as u64 }
    };
    let packets: Vec<Packet> = rows.iter().map(|&row| place(row)).collect();
    assert_eq!(packets.len(), FRAMES, "{text}");
    packets
}

/// How a packet is made unreadable.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Zeros,
    Noise,
}

fn overwrite(path: &Path, damage: Damage, packets: &[Packet]) {
    let file = File::options().write(true).open(path).unwrap();
    for Packet { bytes, .. } in packets {
        let byte = |i: u64| if matches!(damage, Damage::Zeros) { 0 } else { (i * 31 + 17) as u8 };
        let rubbish: Vec<u8> = bytes.clone().map(byte).collect();
        file.write_all_at(&rubbish, bytes.start).unwrap();
    }
}

/// A request for every frame of a file.
fn every_frame(path: &Path, info: &MediaInfo) -> DecodeRequest {
    let plan = MediaPlan::new(info, None, RATE, FrameGrid::default()).unwrap();
    let frames = plan.image.as_ref().unwrap().frames;
    assert_eq!(frames, info.frames, "every frame that the scan counts is planned");
    DecodeRequest {
        segment: Segment { frames, ..request(path, info, None).segment },
        plan,
        ..request(path, info, None)
    }
}

fn kept(path: &Path) -> Kept {
    let mut stage = stage(path.parent().unwrap());
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    let mut kept = Kept::default();
    stage.process(every_frame(path, &info), &mut kept).unwrap();
    kept
}

/// What the batches say of frames that others stand in for.
fn replaced(kept: &Kept) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for batch in &kept.batches {
        let rows = batch.offset..batch.offset + batch.tensor.rows() as u64;
        for frame in &batch.plan.image.as_ref().unwrap().replaced {
            assert!(rows.contains(frame), "batch {rows:?} speaks of frame {frame}");
            all.insert(*frame as usize);
        }
    }
    all
}

/// Holds a damaged file's frames against the undamaged one's, and gives the numbers of those that stand in. What lies
/// in `spoilt` may look like anything, where it decodes.
fn check(name: &str, whole: &Kept, damaged: &Kept, spoilt: Range<usize>) -> BTreeSet<usize> {
    let (whole, frames, replaced) = (whole.frames(0), damaged.frames(0), replaced(damaged));
    assert!(whole.windows(2).all(|w| w[0] != w[1]), "{name}: a frame cannot be told from the next");
    for (number, (frame, whole)) in frames.iter().zip(&whole).enumerate() {
        assert!(spoilt.contains(&number) || frame == whole, "{name}: frame {number} is another one");
    }
    for &number in &replaced {
        assert!(spoilt.contains(&number), "{name}: frame {number} is not damaged");
        assert!(number == 0 || frames[number] == frames[number - 1], "{name}: frame {number} is not the one before");
    }
    replaced
}

/// A film in each kind of container, with a keyframe every [`GROUP`] frames.
fn files(dir: &Path) -> Vec<PathBuf> {
    let vp9 = format!("-c:v libvpx-vp9 -b:v 300k -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 8 -g {GROUP}");
    let fragmented = format!("{X264} -movflags frag_keyframe+empty_moov");
    [
        ("a.mp4", X264),
        ("fragmented.mp4", &fragmented),
        ("a.mkv", X264),
        ("a.webm", &vp9),
        // Counted by GStreamer's demuxers.
        ("a.flv", X264),
    ]
    .map(|(name, options)| make(dir, name, &[picture(SIZE, "25", SECONDS)], options))
    .to_vec()
}

#[test]
fn frames_after_damage_keep_their_numbers_in_every_container() {
    let dir = tempdir().unwrap();
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (bytes, whole) = (std::fs::read(&path).unwrap(), kept(&path));
        assert_eq!((whole.frames(0).len(), replaced(&whole).len()), (FRAMES, 0), "{name}");
        for damage in [Damage::Zeros, Damage::Noise] {
            std::fs::write(&path, &bytes).unwrap();
            let packets = packets(&path);
            let hit = &packets[69..74];
            overwrite(&path, damage, hit);
            let first = hit.iter().map(|p| p.number).min().unwrap();
            // A B-frame before the damage may refer to a picture in it; a keyframe refers to none.
            let replaced = check(&format!("{name}, {damage:?}"), &whole, &kept(&path), first - 3..3 * GROUP);
            let lost: BTreeSet<usize> = hit.iter().map(|p| p.number).collect();
            assert!(replaced.is_superset(&lost), "{name}, {damage:?}: {lost:?} are lost, {replaced:?} replaced");
        }
    }
}

#[test]
fn a_lost_keyframe_spoils_frames_up_to_the_next_one_and_shifts_none() {
    let dir = tempdir().unwrap();
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = kept(&path);
        let packets = packets(&path);
        assert_eq!(packets[2 * GROUP].number, 2 * GROUP, "{name}: a keyframe");
        overwrite(&path, Damage::Noise, &packets[2 * GROUP..2 * GROUP + 1]);
        let replaced = check(name, &whole, &kept(&path), 2 * GROUP..3 * GROUP);
        assert!(replaced.contains(&(2 * GROUP)), "{name}: {replaced:?}");
    }
}

#[test]
fn before_the_first_frame_that_decodes_it_stands_in() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mkv", &[picture(SIZE, "25", SECONDS)], X264);
    let whole = kept(&path);
    // All of the first group of pictures.
    overwrite(&path, Damage::Noise, &packets(&path)[..GROUP]);
    let damaged = kept(&path);
    let replaced = check("a.mkv", &whole, &damaged, 0..GROUP);
    assert_eq!(replaced, (0..GROUP).collect());
    assert!(damaged.frames(0)[..GROUP].iter().all(|frame| *frame == whole.frames(0)[GROUP]));
}

#[test]
fn sampled_frames_are_replaced_by_the_picture_before_and_not_by_the_sampled_one_before() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture(SIZE, "25", SECONDS)], X264);
    let lost = 3 * RATE as usize;
    let packets = packets(&path);
    let hit = packets.iter().position(|p| p.number == lost).unwrap();
    overwrite(&path, Damage::Zeros, &packets[hit..hit + 1]);
    let (_, sampled) = crate::support::decode(&path);
    assert_eq!(replaced(&sampled), [3].into());
    let every = kept(&path);
    assert_eq!(sampled.frames(0)[3], every.frames(0)[lost - 1]);
    assert_ne!(sampled.frames(0)[3], every.frames(0)[lost - 2]);
}

#[test]
fn parts_of_a_damaged_file_say_and_hold_what_the_whole_does() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture(SIZE, "25", SECONDS)], X264);
    overwrite(&path, Damage::Noise, &packets(&path)[55..75]);
    let whole = kept(&path);
    let mut stage = stage(dir.path());
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    let (mut frames, mut said) = (Vec::new(), BTreeSet::new());
    // The second part starts in the middle of what is lost; it comes twice, as a message may.
    for (first_frame, count) in [(0, 66), (66, 50), (66, 50), (116, FRAMES as u64 - 116)] {
        let mut part = every_frame(&path, &info);
        (part.segment.first_frame, part.segment.frames) = (first_frame, count);
        let mut kept = Kept::default();
        stage.process(part, &mut kept).unwrap();
        frames.truncate(first_frame as usize);
        frames.extend(kept.frames(first_frame).into_iter().map(<[u8]>::to_vec));
        said.extend(replaced(&kept));
    }
    assert!(frames.iter().map(Vec::as_slice).eq(whole.frames(0)));
    assert_eq!(said, replaced(&whole));
    assert!(said.contains(&66) && said.len() >= 20, "{said:?}");
}

#[test]
fn a_truncated_last_part_shifts_nothing_before_it() {
    let dir = tempdir().unwrap();
    let faststart = format!("{X264} -movflags faststart");
    for (name, options) in [("a.mp4", faststart.as_str()), ("a.mkv", X264)] {
        let path = make(dir.path(), name, &[picture(SIZE, "25", SECONDS)], options);
        let whole = kept(&path);
        // In the middle of a packet's bytes.
        let cut = packets(&path)[100].bytes.clone();
        File::options().write(true).open(&path).unwrap().set_len((cut.start + cut.end) / 2).unwrap();
        let damaged = kept(&path);
        let frames = damaged.frames(0).len();
        assert!((100..=101).contains(&frames), "{name}: {frames} frames");
        // Of the last pictures those that are shown first may lie behind the cut, and what is left moves up.
        check(name, &whole, &damaged, 96..frames);
    }
}

/// Inserts a `cslg` box, by which an index says that all its pictures are shown so many ticks later, before the `ctts`
/// box, the presence of which it presumes.
fn delay(path: &Path, ticks: i32) {
    let mut bytes = std::fs::read(path).unwrap();
    let last = |bytes: &[u8], name: &[u8; 4], end: usize| bytes[..end].windows(4).rposition(|w| w == name).unwrap();
    let at = last(&bytes, b"ctts", bytes.len()) - 4;
    let cslg: Vec<u8> = [32, i32::from_be_bytes(*b"cslg"), 0, ticks, 0, 0, 0, 0].map(i32::to_be_bytes).concat();
    // The index stands behind the packets, so that none of these moves.
    for parent in [b"moov", b"trak", b"mdia", b"minf", b"stbl"] {
        let size = last(&bytes, parent, at) - 4;
        let told = u32::from_be_bytes(bytes[size..size + 4].try_into().unwrap());
        bytes[size..size + 4].copy_from_slice(&(told + cslg.len() as u32).to_be_bytes());
    }
    bytes.splice(at..at, cslg);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_index_that_delays_all_pictures_renumbers_none() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture(SIZE, "25", SECONDS)], X264);
    let whole = kept(&path);
    // Two frames of this file's 12,800 ticks a second.
    delay(&path, 1024);
    let delayed = kept(&path);
    assert_eq!(replaced(&delayed), BTreeSet::new());
    assert!(delayed.frames(0) == whole.frames(0));
}
