//! Stage as a process serves it: with its probe, and a dump if the configuration asks for one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use protocol::error::{JobError, StageName};
use protocol::file_uri;
use protocol::message::DecodeRequest;
use protocol::stage::{FileSource, Files, Port, Probe, Stage, Stop, Tell};

use crate::dump::DumpPort;
use crate::fetched::Fetched;
use crate::stage::{DecodeOptions, DecodeStage};

/// Longest time without progress in a file.
const STALL: Duration = Duration::from_secs(30);

/// Stage with probe and dump, ready to serve.
pub struct Served {
    stage: DecodeStage,
    /// Answers probes from other threads while `stage` decodes.
    prober: Arc<DecodeStage>,
    dump: Option<PathBuf>,
    /// Copies of files that travel over the bus.
    fetched: Arc<Fetched>,
}

/// The stage that the configuration describes.
///
/// # Errors
/// As [`DecodeStage::new`].
pub fn open(config: &Config) -> Result<Served, JobError> {
    let decode = &config.decode;
    // Its own word comes before that of whoever watches it.
    let watched = Duration::try_from_secs_f64(config.watchdog.step_s / 2.0).unwrap_or(STALL);
    let fetched = Fetched::open(decode.spool.as_deref(), decode.spool_bytes)?;
    let stage = DecodeStage::new(DecodeOptions {
        batch_frames: decode.batch_frames,
        stall_timeout: STALL.min(watched),
        max_pixels: decode.max_pixels,
        ..DecodeOptions::new(decode.media_roots.iter().chain(&decode.spool))
    })?;
    Ok(Served { prober: Arc::new(stage.clone()), stage, dump: decode.dump.clone(), fetched })
}

impl Stage for Served {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        DecodeStage::units(input)
    }

    fn process(&mut self, mut input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        input.video = here(&self.fetched, &input.video, &mut |_| !port.cancelled())?;
        let Some(dir) = &self.dump else { return self.stage.process(input, port) };
        let mut port = DumpPort::new(port, dir)?;
        self.stage.process(input, &mut port)?;
        Ok(port.finish()?)
    }

    fn probe(&self) -> Option<Probe> {
        let (prober, fetched) = (self.prober.clone(), self.fetched.clone());
        Some(Arc::new(move |video, tell| prober.probe_telling(&here(&fetched, video, tell)?, tell)))
    }

    fn files(&self) -> Option<Files> {
        let (prober, fetched) = (self.prober.clone(), self.fetched.clone());
        let content = move |video: &str| match Fetched::name(video)? {
            None => prober.content(video),
            // Known once it is fetched.
            Some(name) => fetched.is_there(name).map(|()| String::new()).map_err(Stop::at_start),
        };
        Some(Files { roots: self.stage.roots(), content: Arc::new(content) })
    }

    fn use_source(&mut self, source: Arc<dyn FileSource>) {
        self.fetched.use_source(source);
    }
}

/// What a video is called here: a file that travels over the bus by the path of its copy, which is fetched if it is not here.
fn here(fetched: &Fetched, video: &str, tell: &mut Tell<'_>) -> Result<String, Stop> {
    match Fetched::name(video)? {
        None => Ok(video.to_owned()),
        Some(name) => Ok(file_uri::text(&fetched.copy(name, tell)?)),
    }
}
