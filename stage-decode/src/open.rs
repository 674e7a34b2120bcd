//! Stage as a process serves it: with its probe, and a dump if the configuration asks for one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use protocol::error::{JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::stage::{Port, Probe, Stage, Stop};

use crate::dump::DumpPort;
use crate::stage::{DecodeOptions, DecodeStage};

/// Longest time without progress in a file.
const STALL: Duration = Duration::from_secs(30);

/// Stage with probe and dump, ready to serve.
pub struct Served {
    stage: DecodeStage,
    /// Answers probes from other threads while `stage` decodes.
    prober: Arc<DecodeStage>,
    dump: Option<PathBuf>,
}

/// The stage that the configuration describes.
///
/// # Errors
/// As [`DecodeStage::new`].
pub fn open(config: &Config) -> Result<Served, JobError> {
    let decode = &config.decode;
    // Its own word comes before that of whoever watches it.
    let watched = Duration::try_from_secs_f64(config.watchdog.step_s / 2.0).unwrap_or(STALL);
    let stage = DecodeStage::new(DecodeOptions {
        batch_frames: decode.batch_frames,
        stall_timeout: STALL.min(watched),
        max_pixels: decode.max_pixels,
        ..DecodeOptions::new(decode.media_roots.iter())
    })?;
    Ok(Served { prober: Arc::new(stage.clone()), stage, dump: decode.dump.clone() })
}

impl Stage for Served {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        DecodeStage::units(input)
    }

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let Some(dir) = &self.dump else { return self.stage.process(input, port) };
        let mut port = DumpPort::new(port, dir)?;
        self.stage.process(input, &mut port)?;
        Ok(port.finish()?)
    }

    fn probe(&self) -> Option<Probe> {
        let prober = self.prober.clone();
        Some(Arc::new(move |video, tell| prober.probe_telling(video, tell)))
    }
}
