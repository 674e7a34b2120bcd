//! The stage: a [`DecodeRequest`] in, frames and windows of sound out.
//!
//! Two threads decode, one the picture and one the sound, each into the same bounded queue; the calling thread empties
//! it into the port. Whoever stops first stops all three, and no thread outlives [`DecodeStage::process`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::plan::{AudioPlan, MediaInfo, WINDOW_SAMPLES, frame_range, sample_range};
use protocol::stage::{Port, Stage, Stop};

use crate::audio;
use crate::batch::{FrameBatches, Windows};
use crate::failure;
use crate::media_path::MediaRoots;
use crate::picks::Picks;
use crate::probe::{self, PictureTrack, SoundTrack};
use crate::video::{self, Frame};

/// How often a waiting stage asks whether the job was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// Frames (0.4 MB) and windows (1 MB) that wait for the port at most.
const QUEUED: usize = 8;

/// What stage-decode is told at start.
#[derive(Clone, Debug)]
pub struct DecodeConfig {
    /// Directories whose files may be opened.
    pub media_roots: Vec<PathBuf>,
    /// Frames of one message at most; the bus splits further where its limit asks for it.
    pub batch_frames: usize,
    /// A decoder that makes no progress for so long is given up.
    pub stall_timeout: Duration,
}

impl DecodeConfig {
    /// The defaults: 8 frames a message, 30 s of standstill.
    pub fn new<P: Into<PathBuf>>(media_roots: impl IntoIterator<Item = P>) -> Self {
        DecodeConfig {
            media_roots: media_roots.into_iter().map(Into::into).collect(),
            batch_frames: 8,
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Turns video files into frames and PCM windows.
pub struct DecodeStage {
    roots: MediaRoots,
    batch_frames: usize,
    stall: Duration,
}

impl DecodeStage {
    /// A stage that opens files under the configured roots only.
    ///
    /// # Errors
    /// `bad_request` for a root that is no directory, `internal` if GStreamer does not start.
    pub fn new(config: DecodeConfig) -> Result<Self, JobError> {
        crate::pipeline::init()?;
        let roots = MediaRoots::new(&config.media_roots)?;
        Ok(DecodeStage { roots, batch_frames: config.batch_frames.max(1), stall: config.stall_timeout })
    }

    /// What a file under the media roots is, without decoding it.
    ///
    /// # Errors
    /// `media_not_found`, `forbidden_path`, `unsupported_media`, `bad_request` for what names no file.
    pub fn probe(&self, video: &str) -> Result<MediaInfo, JobError> {
        let examined = self.roots.resolve(video).and_then(|path| probe::examine(&path, self.stall));
        examined.map(|e| e.info).map_err(|e| e.at(StageName::Decode))
    }

    fn decode(&self, request: &DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let path = self.roots.resolve(&request.video)?;
        let examined = probe::examine(&path, self.stall)?;
        unchanged(&path, &request.plan.content_id, &examined.info)?;
        let absent = |what: &str| failure::unsupported(&path, &format!("the plan has {what}, the file has none"));
        let picture = match &request.plan.image {
            Some(image) if request.segment.frames > 0 => {
                let (first, _) = frame_range(&examined.info, request.span);
                let first = first + request.segment.first_frame * image.frame_step;
                let picks = Picks { first, step: image.frame_step, count: request.segment.frames };
                Some((examined.picture.as_ref().ok_or_else(|| absent("frames"))?, picks))
            }
            _ => None,
        };
        let sound = match &request.plan.audio {
            Some(_) if request.segment.windows > 0 => Some(examined.sound.as_ref().ok_or_else(|| absent("sound"))?),
            _ => None,
        };
        let work = Work { path: &path, request, stall: self.stall, stopping: AtomicBool::new(false) };
        let work = &work;
        thread::scope(|scope| {
            let (events, queue) = sync_channel(QUEUED);
            let mut threads = Vec::new();
            if let Some((track, picks)) = picture {
                let events = events.clone();
                let decode = move || work.report(&events, work.picture(track, picks, &events));
                threads.push(thread::Builder::new().name("decode-picture".to_owned()).spawn_scoped(scope, decode));
            }
            if let Some(track) = sound {
                let events = events.clone();
                let decode = move || work.report(&events, work.sound(track, &events));
                threads.push(thread::Builder::new().name("decode-sound".to_owned()).spawn_scoped(scope, decode));
            }
            drop(events);
            let outcome = forward(request, self.batch_frames, queue, port);
            work.stopping.store(true, Ordering::Relaxed);
            for thread in threads {
                let thread = thread.map_err(|e| internal(&format!("no thread to decode on: {e}")))?;
                thread.join().map_err(|_| internal("a decoding thread panicked. This is a bug."))?;
            }
            outcome
        })
    }
}

impl Stage for DecodeStage {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        self.decode(&input, port).map_err(|stop| match stop {
            Stop::Failed(error) => Stop::Failed(error.at(StageName::Decode)),
            other => other,
        })
    }
}

fn internal(what: &str) -> Stop {
    JobError::new(ErrorKind::Internal, what).into()
}

/// A file that was replaced after it was planned has other frames than the plan.
fn unchanged(path: &Path, planned: &str, info: &MediaInfo) -> Result<(), JobError> {
    if planned.is_empty() || planned == info.content_id {
        return Ok(());
    }
    let text = format!("{} changed after it was planned ({planned}, now {})", path.display(), info.content_id);
    Err(JobError::new(ErrorKind::MediaNotFound, text).hint("submit the job again"))
}

/// What the decoding threads hand to the calling one.
enum Event {
    Frame(Frame),
    FramesDone,
    /// The exact plan, once the sound is decoded; none: too little, or silence.
    Sound(Option<AudioPlan>),
    Window {
        index: u64,
        pcm: Vec<u8>,
    },
    Stopped(Stop),
}

/// What both decoding threads see.
struct Work<'a> {
    path: &'a Path,
    request: &'a DecodeRequest,
    stall: Duration,
    /// Set once the calling thread listens no more.
    stopping: AtomicBool,
}

impl Work<'_> {
    fn report(&self, events: &SyncSender<Event>, end: Result<(), Stop>) {
        if let Err(stop) = end {
            // Nobody is left to tell if the calling thread stopped first.
            let _ = events.send(Event::Stopped(stop));
        }
    }

    fn picture(&self, track: &PictureTrack, picks: Picks, events: &SyncSender<Event>) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let mut deliver = |frame| send(events, Event::Frame(frame));
        video::decode(self.path, track, picks, self.stall, &cancelled, &mut deliver)?;
        send(events, Event::FramesDone)
    }

    fn sound(&self, track: &SoundTrack, events: &SyncSender<Event>) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let spool = audio::decode(self.path, track, self.stall, &cancelled)?;
        let unreadable = |e: std::io::Error| audio::no_room(&e);
        let (start, end) = sample_range(spool.len(), self.request.span);
        let planned = self.request.plan.audio.as_ref().map_or(0, |a| a.windows);
        let segment = &self.request.segment;
        let whole = segment.first_window == 0 && segment.windows == planned;
        let mut plan = AudioPlan::new(end - start);
        if whole && spool.is_silent(start, end).map_err(unreadable)? {
            plan = None;
        }
        let exact = plan.as_ref().map_or(0, AudioPlan::encoded_windows);
        send(events, Event::Sound(plan))?;
        // The plan counted windows by the container's figure; the last segment takes whatever there really is.
        let last = segment.first_window + segment.windows;
        let last = if last == planned { exact } else { last.min(exact) };
        for index in segment.first_window..last {
            let from = start + index * WINDOW_SAMPLES;
            let pcm = spool.read(from, WINDOW_SAMPLES.min(end - from)).map_err(unreadable)?;
            send(events, Event::Window { index, pcm })?;
        }
        Ok(())
    }
}

fn send(events: &SyncSender<Event>, event: Event) -> Result<(), Stop> {
    events.send(event).map_err(|_| Stop::Cancelled)
}

/// Empties the queue into the port until both threads are done.
fn forward(
    request: &DecodeRequest,
    batch_frames: usize,
    queue: Receiver<Event>,
    port: &mut dyn Port,
) -> Result<(), Stop> {
    let mut frames = FrameBatches::new(request, batch_frames);
    let mut windows = Windows::new(request);
    loop {
        if port.cancelled() {
            return Err(Stop::Cancelled);
        }
        match queue.recv_timeout(POLL) {
            Ok(Event::Frame(frame)) => frames.push(&frame, port)?,
            Ok(Event::FramesDone) => frames.finish(port)?,
            Ok(Event::Sound(plan)) => {
                let absent = plan.is_none() && request.segment.first_window == 0;
                windows.settle(plan);
                if absent {
                    windows.emit(0, &[], port)?;
                }
            }
            Ok(Event::Window { index, pcm }) => windows.emit(index, &pcm, port)?,
            Ok(Event::Stopped(stop)) => return Err(stop),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
