//! `decode FILE [--dump DIR] [--json]`: runs the stage on a file and prints the output, the time and the peak memory. `--dump` writes `frames.npy` and `pcm.npy`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::error::JobError;
use protocol::message::{DecodeRequest, JobId, Output, Segment};
use protocol::plan::{FrameGrid, MediaPlan};
use protocol::stage::{Port, Stage, Stop};
use stage_decode::npy::{Element, NpyWriter};
use stage_decode::{DecodeOptions, DecodeStage};

/// Port that counts, and writes the dump.
#[derive(Default)]
struct Counting {
    frames: u64,
    windows: u64,
    samples: u64,
    arrays: Option<(NpyWriter, NpyWriter)>,
}

impl Port for Counting {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let io = |e: std::io::Error| Stop::Unavailable(e.to_string());
        match output {
            Output::Frames(batch) => {
                self.frames += batch.tensor.rows() as u64;
                if let Some((frames, _)) = &mut self.arrays {
                    frames.append(batch.tensor.data()).map_err(io)?;
                }
            }
            Output::Pcm(window) => {
                self.windows += 1;
                self.samples += window.tensor.rows() as u64;
                if let Some((_, pcm)) = &mut self.arrays {
                    pcm.append_pcm(&window.tensor.to_i16()).map_err(io)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Peak resident memory in MiB, from /proc/self/status.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn run(file: &Path, dump: Option<&Path>, json: bool) -> Result<(), Stop> {
    let started = Instant::now();
    let failed = |e: std::io::Error| Stop::Unavailable(e.to_string());
    let file = file.canonicalize().map_err(failed)?;
    let mut stage = DecodeStage::new(DecodeOptions::new([file.parent().unwrap_or(Path::new("/"))]))?;
    let video = file.to_string_lossy().into_owned();
    let probing = Instant::now();
    let info = stage.probe(&video)?;
    let probe_s = probing.elapsed().as_secs_f64();
    let plan = MediaPlan::new(&info, None, 1.0, FrameGrid::default())?;
    let segment = Segment {
        first_frame: 0,
        frames: plan.image.as_ref().map_or(0, |i| i.frames),
        first_window: 0,
        windows: plan.audio.as_ref().map_or(0, |a| a.windows),
    };
    let job = JobId::new("example").map_err(|e| Stop::Unavailable(e.to_string()))?;
    let request = DecodeRequest { v: 1, job, video, span: None, plan, segment };
    let mut port = Counting::default();
    if let Some(dir) = dump {
        let frames = NpyWriter::create(&dir.join("frames.npy"), Element::U8, &[384, 384, 3]).map_err(failed)?;
        let pcm = NpyWriter::create(&dir.join("pcm.npy"), Element::F32, &[]).map_err(failed)?;
        port.arrays = Some((frames, pcm));
    }
    stage.process(request, &mut port)?;
    if let Some((frames, pcm)) = port.arrays.take() {
        frames.finish().and_then(|_| pcm.finish()).map_err(failed)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if json {
        let Counting { frames, windows, samples, .. } = port;
        let report = serde_json::json!({
            "info": info, "frames": frames, "windows": windows, "samples": samples,
            "probe_s": probe_s, "seconds": seconds, "peak_mib": peak_mib(),
        });
        println!("{report}");
    } else {
        println!("{info:?}");
        println!(
            "{} frames, {} windows ({} samples) of {:.2} s in {seconds:.3} s (probe {:.1} ms), peak {} MiB",
            port.frames,
            port.windows,
            port.samples,
            info.duration_s,
            probe_s * 1e3,
            peak_mib()
        );
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut file, mut dump, mut json) = (None, None, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dump" => dump = arguments.next().map(PathBuf::from),
            "--json" => json = true,
            _ => file = Some(PathBuf::from(argument)),
        }
    }
    let Some(file) = file else {
        eprintln!("decode FILE [--dump DIR] [--json]");
        return std::process::ExitCode::FAILURE;
    };
    match run(&file, dump.as_deref(), json) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(stop) => {
            let text = match stop {
                Stop::Failed(error) => JobError::to_string(&error),
                other => format!("{other:?}"),
            };
            eprintln!("{text}");
            std::process::ExitCode::FAILURE
        }
    }
}
