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

/// Longest time that a decoder may make no progress.
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
    let new = || {
        DecodeStage::new(DecodeOptions {
            media_roots: decode.media_roots.clone(),
            batch_frames: decode.batch_frames,
            stall_timeout: STALL,
            max_pixels: decode.max_pixels,
            ..DecodeOptions::new(decode.media_roots.iter())
        })
    };
    Ok(Served { stage: new()?, prober: Arc::new(new()?), dump: decode.dump.clone() })
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
        Some(Arc::new(move |video| prober.probe(video)))
    }
}
