//! Segments, spans, absent halves, cancelling, and what is left behind.

use std::time::{Duration, Instant};

use crate::support::{Kept, decode, input, make, picture, request, sound, stage};
use protocol::message::Segment;
use protocol::plan::{FRAME_BYTES, FrameGrid, WINDOW_SAMPLES, frame_range};
use protocol::stage::{Stage, Stop};
use tempfile::tempdir;

const CODECS: &str = "-c:v libx264 -preset ultrafast -c:a aac";

#[test]
fn segments_together_are_the_whole() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("160x120", "10", 70.0), sound(16_000, 70.0)], CODECS);
    let (info, whole) = decode(&path);
    let whole_frames = whole.frames(0);
    assert_eq!((whole_frames.len(), whole.windows.len()), (70, 3));
    assert!(whole.batches.iter().all(|b| b.tensor.rows() <= 8), "batches of 8 frames at most");

    let mut frames = Vec::new();
    let mut pcm = Vec::new();
    for (first_frame, frames_here, first_window, windows) in [(0, 33, 0, 1), (33, 1, 1, 0), (34, 36, 1, 2)] {
        let mut part = request(&path, &info, None);
        part.segment = Segment { first_frame, frames: frames_here, first_window, windows };
        let mut kept = Kept::default();
        stage(dir.path()).process(part, &mut kept).unwrap();
        frames.extend(kept.frames(first_frame).into_iter().map(<[u8]>::to_vec));
        for (window, index) in kept.windows.iter().zip(first_window..) {
            assert_eq!(window.index, index);
            assert_eq!(window.plan.audio, whole.windows[0].plan.audio);
        }
        assert_eq!(kept.windows.len() as u64, windows);
        pcm.extend(kept.pcm());
    }
    assert!(frames.iter().map(Vec::as_slice).eq(whole_frames), "the same frames");
    assert_eq!(pcm, whole.pcm());
    assert!(whole.windows[..2].iter().all(|w| w.tensor.rows() as u64 == WINDOW_SAMPLES));
}

#[test]
fn a_span_starts_at_its_own_first_frame_and_sample() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("160x120", "10", 12.0), sound(16_000, 12.0)], CODECS);
    let mut stage = stage(dir.path());
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    let span = Some([2.35, 7.05]);
    assert_eq!(frame_range(&info, span), (24, 71));
    let mut kept = Kept::default();
    stage.process(request(&path, &info, span), &mut kept).unwrap();

    // Every frame of the file, to compare with.
    let mut all = request(&path, &info, None);
    let plan = protocol::plan::MediaPlan::new(&info, None, 10.0, FrameGrid::default()).unwrap();
    all.segment.frames = plan.image.as_ref().unwrap().frames;
    all.plan = plan;
    let mut every = Kept::default();
    stage.process(all, &mut every).unwrap();
    let every_frame = every.frames(0);
    assert_eq!(every_frame.len(), 120);
    assert!(every_frame.windows(2).all(|w| w[0] != w[1]), "frames that can be told apart");
    let expected: Vec<&[u8]> = [24, 34, 44, 54, 64].map(|i: usize| every_frame[i]).to_vec();
    assert_eq!(kept.frames(0), expected);
    assert_eq!(kept.pcm(), every.pcm()[37_600..112_800]);
}

#[test]
fn a_black_film_and_silence_count_as_absent() {
    let dir = tempdir().unwrap();
    let black = input("color=black:s=160x120:r=10:d=3".to_owned());
    let silence = input("anullsrc=r=16000:cl=mono:d=3".to_owned());
    let silence = [silence, vec!["-t".to_owned(), "3".to_owned()]].concat();
    let lossless = "-c:v libx264 -preset ultrafast -qp 0 -c:a pcm_s16le";
    let path = make(dir.path(), "a.mkv", &[black, silence[..4].to_vec()], &format!("{lossless} -t 3"));
    let (info, kept) = decode(&path);
    assert_eq!((info.frames, kept.batches.len(), kept.windows.len()), (30, 1, 1));
    let (batch, window) = (&kept.batches[0], &kept.windows[0]);
    assert_eq!((batch.offset, batch.tensor.shape(), &batch.plan.image), (0, vec![0, 384, 384, 3], &None));
    assert_eq!((window.index, window.tensor.rows(), &window.plan.audio), (0, 0, &None));

    // As parts of a whole that nobody has seen yet, they are sent as they are.
    let mut part = request(&path, &info, None);
    part.segment.frames = 2;
    let mut kept = Kept::default();
    stage(dir.path()).process(part, &mut kept).unwrap();
    assert!(kept.frames(0).iter().all(|f| f.iter().all(|&b| b == 0)));
    assert_eq!(kept.frames(0).len(), 2);
}

#[test]
fn black_frames_before_the_first_picture_are_all_sent() {
    let dir = tempdir().unwrap();
    let late = input("color=black:s=160x120:r=10:d=20,drawbox=enable='gte(t,17.5)':color=white:t=fill".to_owned());
    let path = make(dir.path(), "a.mkv", &[late], "-c:v libx264 -preset ultrafast -qp 0");
    let (_, kept) = decode(&path);
    let frames = kept.frames(0);
    assert_eq!(frames.len(), 20);
    let first_lit = frames.iter().position(|f| f.iter().any(|&b| b != 0));
    assert_eq!(first_lit, Some(18));
    assert!(kept.batches.iter().all(|b| b.plan.image.is_some()));
}

#[test]
fn what_the_plan_does_not_ask_for_is_not_sent() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("160x120", "10", 3.0), sound(16_000, 3.0)], CODECS);
    let (info, _) = decode(&path);
    let mut silent = request(&path, &info, None);
    silent.plan.audio = None;
    silent.segment.windows = 0;
    let mut kept = Kept::default();
    stage(dir.path()).process(silent, &mut kept).unwrap();
    assert_eq!((kept.frames(0).len(), kept.windows.len()), (3, 0));

    let mut blind = request(&path, &info, None);
    blind.plan.image = None;
    blind.segment.frames = 0;
    let mut kept = Kept::default();
    stage(dir.path()).process(blind, &mut kept).unwrap();
    assert_eq!((kept.batches.len(), kept.windows.len()), (0, 1));
}

#[test]
fn a_cancelled_job_stops_at_once_and_leaves_nothing_behind() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[picture("640x360", "30", 40.0), sound(44_100, 40.0)], CODECS);
    let mut stage = stage(dir.path());
    let info = stage.probe(path.to_str().unwrap()).unwrap();
    let began = Instant::now();
    stage.process(request(&path, &info, None), &mut Kept::default()).unwrap();
    let whole = began.elapsed();
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    // Other tests run beside this one: what leaks would show twenty times over.
    let before = (count("fd"), count("task"));
    let mut stopped_after = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let mut port = Kept { cancel_after: Some(1), ..Kept::default() };
        assert_eq!(stage.process(request(&path, &info, None), &mut port), Err(Stop::Cancelled));
        assert_eq!(port.batches.len() + port.windows.len(), 1);
        stopped_after = stopped_after.max(began.elapsed());
    }
    let after = (count("fd"), count("task"));
    assert!(stopped_after < whole, "{stopped_after:?} of {whole:?}");
    assert!(after.0 < before.0 + 20 && after.1 < before.1 + 20, "{before:?} descriptors and threads, then {after:?}");
}

#[test]
fn frames_are_whole_pictures() {
    assert_eq!(FRAME_BYTES, 384 * 384 * 3);
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "a.mp4", &[input("color=red:s=160x120:r=10:d=3".to_owned())], "-c:v libx264");
    let (_, kept) = decode(&path);
    let close = |p: &[u8; 3]| p[0] > 245 && p[1] < 10 && p[2] < 10;
    assert_eq!(kept.frames(0).len(), 3);
    assert!(kept.frames(0).iter().all(|f| f.as_chunks::<3>().0.iter().all(close)), "red everywhere, in RGB order");
}
