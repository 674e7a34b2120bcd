//! What the tests of this crate share: files made by ffmpeg, a port that keeps everything, and distances.

#![allow(dead_code, reason = "the tests beside the suite use a part")]

pub mod boxes;
pub mod fields;
pub mod reference;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use protocol::error::ErrorKind;
use protocol::message::{DecodeRequest, FrameBatch, JobId, Output, PcmWindow, Segment};
use protocol::plan::{FRAME_BYTES, FrameGrid, MediaInfo, MediaPlan};
use protocol::stage::{Port, Stage, Stop};
use protocol::wire::Message;
use stage_decode::{DecodeOptions, DecodeStage};

/// Options of a film of H.264.
pub const X264: &str = "-c:v libx264 -preset veryfast";

/// A moving test picture; `rate` may be a fraction.
pub fn picture(size: &str, rate: &str, seconds: f64) -> Vec<String> {
    input(format!("testsrc2=s={size}:r={rate}:d={seconds}"))
}

/// Stereo with a sweep and a high tone, so that any shift in time shows. A file, which ffmpeg computes once for all programs: it had been
/// a tenth of what the tests of MP4 took.
pub fn sound(rate: u32, seconds: f64) -> Vec<String> {
    let left = "0.3*sin(2*PI*440*t)+0.2*sin(2*PI*(300+500*t)*t)";
    let right = "0.3*sin(2*PI*660*t)+0.1*sin(2*PI*5000*t)";
    let source = format!("aevalsrc={left}|{right}:s={rate}:d={seconds}");
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = kept.join(format!("sound-{:016x}.wav", hasher.finish()));
    if !path.exists() {
        let making = tempfile::tempdir_in(kept).unwrap();
        let made = make(making.path(), "sound.wav", &[input(source)], "-c:a pcm_f64le");
        std::fs::rename(made, &path).unwrap();
    }
    vec!["-i".to_owned(), path.to_str().unwrap().to_owned()]
}

/// Any lavfi source as an input of ffmpeg.
pub fn input(source: String) -> Vec<String> {
    vec!["-f".to_owned(), "lavfi".to_owned(), "-i".to_owned(), source]
}

/// Runs a tool and returns what it prints; its own words if it fails.
pub fn run(tool: &str, arguments: &[String]) -> Vec<u8> {
    let done = Command::new(tool).args(arguments).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{tool} {}: {said}", arguments.join(" "));
    done.stdout
}

/// Splits a command line at spaces.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Makes `name` in `dir` from lavfi inputs and encoder options.
pub fn make(dir: &Path, name: &str, inputs: &[Vec<String>], options: &str) -> PathBuf {
    let path = dir.join(name);
    let mut arguments = words("-v error -y");
    arguments.extend(inputs.iter().flatten().cloned());
    arguments.extend(words(options));
    arguments.push(path.to_str().unwrap().to_owned());
    run("ffmpeg", &arguments);
    path
}

/// Keeps what a stage emits, each message checked as the bus would.
#[derive(Default)]
pub struct Kept {
    /// Offset and rows of each batch of frames, and its plan.
    pub batches: Vec<FrameBatch<'static>>,
    pub windows: Vec<PcmWindow<'static>>,
    /// Says "cancelled" once so many messages have come.
    pub cancel_after: Option<usize>,
}

impl Port for Kept {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        match output {
            Output::Frames(batch) => {
                batch.check().expect("a batch that the bus would take");
                let data = batch.tensor.data().to_vec();
                let tensor = protocol::tensor::Tensor::new(batch.tensor.dtype(), &batch.tensor.shape(), data).unwrap();
                self.batches.push(FrameBatch { tensor, ..batch });
            }
            Output::Pcm(window) => {
                window.check().expect("a window that the bus would take");
                let tensor = protocol::tensor::Tensor::from_i16(&window.tensor.to_i16());
                self.windows.push(PcmWindow { tensor, ..window });
            }
            other => panic!("stage-decode does not emit {}", other.message_id()),
        }
        if self.cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    fn cancelled(&self) -> bool {
        self.cancel_after.is_some_and(|n| self.batches.len() + self.windows.len() >= n)
    }
}

impl Kept {
    /// All frames, in order; the batches must follow each other without gaps from `first` on.
    pub fn frames(&self, first: u64) -> Vec<&[u8]> {
        let mut next = first;
        for batch in &self.batches {
            assert_eq!(batch.offset, next, "batches leave no gap");
            next += batch.tensor.rows() as u64;
        }
        self.batches.iter().flat_map(|b| b.tensor.data().chunks_exact(FRAME_BYTES)).collect()
    }

    /// All samples, in order.
    pub fn pcm(&self) -> Vec<i16> {
        self.windows.iter().flat_map(|w| w.tensor.to_i16()).collect()
    }
}

/// A stage that may open files in `dir`.
pub fn stage(dir: &Path) -> DecodeStage {
    let mut config = DecodeOptions::new([dir]);
    config.stall_timeout = Duration::from_secs(20);
    DecodeStage::new(config).unwrap()
}

/// The request for all of a file, at a frame a second.
pub fn request(path: &Path, info: &MediaInfo, span: Option<[f64; 2]>) -> DecodeRequest {
    request_at(path, info, span, 1.0)
}

/// The request for all of a file, at a rate.
pub fn request_at(path: &Path, info: &MediaInfo, span: Option<[f64; 2]>, fps: f64) -> DecodeRequest {
    let plan = MediaPlan::new(info, span, fps, FrameGrid::default()).unwrap();
    let segment = Segment {
        first_frame: 0,
        frames: plan.image.as_ref().map_or(0, |i| i.frames),
        first_window: 0,
        windows: plan.audio.as_ref().map_or(0, |a| a.windows),
    };
    let request = DecodeRequest {
        v: 1,
        job: JobId::new("j").unwrap(),
        video: path.to_str().unwrap().into(),
        span,
        plan,
        segment,
    };
    request.check().expect("an honest request");
    request
}

/// Probes and decodes all of a file, at a frame a second.
pub fn decode(path: &Path) -> (MediaInfo, Kept) {
    decode_at(path, 1.0)
}

/// Probes and decodes all of a file, at a rate.
pub fn decode_at(path: &Path, fps: f64) -> (MediaInfo, Kept) {
    let mut stage = stage(path.parent().unwrap());
    let info = stage.probe(path.to_str().unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut kept = Kept::default();
    let done = stage.process(request_at(path, &info, None, fps), &mut kept);
    done.unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
    (info, kept)
}

/// Peak signal to noise of two pictures, dB; 99 where they are equal.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    // So many squares fit into 32 bits, in which several are added at a time.
    const MANY: usize = 1 << 16;
    let squares = |(a, b): (&[u8], &[u8])| a.iter().zip(b).map(|(&x, &y)| u32::from(x.abs_diff(y)).pow(2)).sum::<u32>();
    let sum: u64 = a.chunks(MANY).zip(b.chunks(MANY)).map(|both| u64::from(squares(both))).sum();
    if sum == 0 { 99.0 } else { 10.0 * (255.0 * 255.0 * a.len() as f64 / sum as f64).log10() }
}

/// Signal to noise of `sound` against `reference` over their common length, dB.
pub fn snr(reference: &[i16], sound: &[i16]) -> f64 {
    let signal: i64 = reference.iter().map(|&x| i64::from(x).pow(2)).sum();
    let noise: i64 = reference.iter().zip(sound).map(|(&x, &y)| (i64::from(x) - i64::from(y)).pow(2)).sum();
    if noise == 0 { 199.0 } else { 10.0 * (signal as f64 / noise as f64).log10() }
}

/// A film of five seconds with sound.
pub fn film(dir: &Path, name: &str, options: &str) -> PathBuf {
    make(dir, name, &[picture("160x120", "10", 5.0), sound(44_100, 5.0)], options)
}

/// The refusal of a file: soon, by name, with what to do.
pub fn refused(path: &Path) -> String {
    let began = Instant::now();
    let error = stage(path.parent().unwrap()).probe(path.to_str().unwrap()).expect_err("should be refused");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
    assert!(error.message.contains(path.to_str().unwrap()) && !error.hint.is_empty(), "{error}");
    error.to_string()
}
