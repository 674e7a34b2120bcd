//! Decode stage: from a [`DecodeRequest`] to frames and windows of audio.
//!
//! Two threads decode, one the video and one the audio, into one bounded queue; the calling thread empties it into the
//! port. The first of the three to stop stops the others, and no thread outlives [`DecodeStage::process`] but one that a read
//! holds up. Whatever looks into a file does so in a thread without a network.
//!
//! How long that takes is decided by the file and by what it lies on. What is limited is the time without progress.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::plan::{AudioPlan, MediaInfo, WINDOW_SAMPLES, frame_range, sample_range};
use protocol::stage::{Port, Stage, Stop, Tell};

use crate::audio;
use crate::batch::{FrameBatches, Windows};
use crate::crew::{self, Crew, Progress};
use crate::failure;
use crate::identity::content_id;
use crate::media_file::MediaFile;
use crate::media_path::MediaRoots;
use crate::picks::Picks;
use crate::pipeline::Limits;
use crate::probe::{self, AudioTrack, Examined, Known, VideoTrack};
use crate::video::{self, Frame};

/// Interval at which a waiting stage checks whether the job was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// Time between two words in the log of how far a long look into a file is.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Time that threads without progress have to end once they are told to.
const END_TIME: Duration = Duration::from_secs(2);
/// Capacity of the queue to the port; a frame has 0.4 MB, a window 1 MB.
const QUEUED: usize = 8;

/// Options of a [`DecodeStage`].
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Directories below which files may be opened.
    pub media_roots: Vec<PathBuf>,
    /// Largest number of frames per message; the bus splits further where its own limit is smaller.
    pub batch_frames: usize,
    /// Longest time without progress: nothing read of the file, and nothing done with what was.
    pub stall_timeout: Duration,
    /// Largest number of pixels of a picture; larger ones are refused before they are decoded.
    pub max_pixels: u64,
}

impl DecodeOptions {
    /// Default options: 8 frames per message, 30 s without progress, pictures of up to 8192 x 4320.
    pub fn new<P: Into<PathBuf>>(media_roots: impl IntoIterator<Item = P>) -> Self {
        DecodeOptions {
            media_roots: media_roots.into_iter().map(Into::into).collect(),
            batch_frames: 8,
            stall_timeout: Duration::from_secs(30),
            max_pixels: 8192 * 4320,
        }
    }
}

/// Stage that decodes video files into frames and PCM windows. Clones know the same files.
#[derive(Clone)]
pub struct DecodeStage {
    roots: MediaRoots,
    batch_frames: usize,
    limits: Limits,
    known: Known,
}

impl DecodeStage {
    /// A stage that opens only files below the configured roots.
    ///
    /// # Errors
    /// `bad_request` for a root that is not a directory, `internal` if GStreamer does not start.
    pub fn new(config: DecodeOptions) -> Result<Self, JobError> {
        crate::pipeline::init()?;
        let roots = MediaRoots::new(&config.media_roots)?;
        let limits = Limits { stall: config.stall_timeout, max_pixels: config.max_pixels };
        Ok(DecodeStage { roots, batch_frames: config.batch_frames.max(1), limits, known: Known::default() })
    }

    /// Facts of a file below the media roots, without decoding it. A container whose index does not tell is read to its end.
    ///
    /// # Errors
    /// `media_not_found`, `forbidden_path`, `unsupported_media`, and `bad_request` for text that names no file.
    pub fn probe(&self, video: &str) -> Result<MediaInfo, JobError> {
        self.probe_telling(video, &mut |_| true).map_err(|stop| match stop {
            Stop::Failed(error) => error,
            other => {
                JobError::new(ErrorKind::Internal, format!("nobody ended the probe, but: {other:?}. This is a bug."))
            }
        })
    }

    /// As [`probe`](Self::probe), and tells every now and then how far it is, until nobody waits any more.
    ///
    /// # Errors
    /// Those of [`probe`](Self::probe), and `Cancelled`.
    pub fn probe_telling(&self, video: &str, tell: &mut Tell<'_>) -> Result<MediaInfo, Stop> {
        let at_home = |error: JobError| error.at(StageName::Decode);
        let media = self.roots.open(video).map_err(at_home)?;
        let examined = self.examine(&media, &mut || !tell(media.reading().looked()));
        examined.map(|e| e.info.clone()).map_err(|stop| match stop {
            Stop::Failed(error) => Stop::Failed(at_home(error)),
            other => other,
        })
    }

    /// Directories below which files are opened, as texts.
    pub fn roots(&self) -> Vec<String> {
        self.roots.shown()
    }

    /// Content of a file below the media roots, as [`MediaInfo::content_id`] has it: three samples of it are read, nothing else.
    ///
    /// # Errors
    /// `media_not_found`, `forbidden_path`, `unsupported_media` for what is no file, and `bad_request` for text that names none.
    pub fn content(&self, video: &str) -> Result<String, JobError> {
        let at_home = |error: JobError| error.at(StageName::Decode);
        let media = self.roots.open(video).map_err(at_home)?;
        content_id(&media).map_err(|e| at_home(failure::unreadable(media.path(), &e)))
    }

    /// Examines a file in a thread of its own, until `cancelled` says that nobody waits for it.
    fn examine(&self, media: &MediaFile, cancelled: &mut dyn FnMut() -> bool) -> Result<Arc<Examined>, Stop> {
        let (answer, answered) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(cancelled()));
        let mut crew = Crew::new()?;
        crew.spawn("decode-probe", {
            let (media, limits, known, stopping) = (media.clone(), self.limits, self.known.clone(), stopping.clone());
            move || {
                let examined = probe::examine(&media, limits, &known, &|| stopping.load(Ordering::Relaxed));
                // Nobody takes it of a thread that was left behind.
                let _ = answer.send(examined);
            }
        })?;
        let (mut progress, mut said) = (Progress::new(media), Instant::now());
        loop {
            let outcome = match answered.recv_timeout(POLL) {
                Ok(outcome) => outcome,
                Err(RecvTimeoutError::Disconnected) => Err(crew::panicked().into()),
                Err(RecvTimeoutError::Timeout) => {
                    if said.elapsed() > SAY_EVERY {
                        said = Instant::now();
                        let (read, size) = (media.reading().bytes(), media.reading().size());
                        tracing::info!(file = %media.path().display(), read, size, "still looking into a file");
                    }
                    match progress.check(self.limits.stall) {
                        Ok(()) if !cancelled() => continue,
                        Ok(()) => Err(Stop::Cancelled),
                        Err(stuck) => Err(Stop::Failed(stuck)),
                    }
                }
            };
            stopping.store(true, Ordering::Relaxed);
            crew.join(media, END_TIME)?;
            return outcome;
        }
    }

    fn decode(&self, request: &Arc<DecodeRequest>, port: &mut dyn Port) -> Result<(), Stop> {
        let media = self.roots.open(&request.video)?;
        let examined = self.examine(&media, &mut || port.cancelled())?;
        let path = media.path();
        unchanged(path, &request.plan.content_id, &examined.info)?;
        let absent = |what: &str| failure::unsupported(path, &format!("the plan has {what}, but the file has none"));
        let picks = match &request.plan.image {
            Some(image) if request.segment.frames > 0 => {
                let (first, _) = frame_range(&examined.info, request.span);
                let first = first + request.segment.first_frame * image.frame_step;
                Some(Picks { first, step: image.frame_step, count: request.segment.frames })
            }
            _ => None,
        };
        let hears = request.plan.audio.is_some() && request.segment.windows > 0;
        if picks.is_some() && examined.video.is_none() {
            return Err(absent("frames").into());
        }
        if hears && examined.audio.is_none() {
            return Err(absent("audio").into());
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let work = |events: &SyncSender<Event>| Work {
            media: media.clone(),
            request: request.clone(),
            limits: self.limits,
            stopping: stopping.clone(),
            events: events.clone(),
        };
        let (events, queue) = sync_channel(QUEUED);
        let mut crew = Crew::new()?;
        if let Some(picks) = picks {
            let (work, examined) = (work(&events), examined.clone());
            crew.spawn("decode-video", move || {
                work.report(examined.video.as_ref().map_or(Ok(()), |track| work.video(track, picks)));
            })?;
        }
        if hears {
            let (work, examined) = (work(&events), examined.clone());
            crew.spawn("decode-audio", move || {
                work.report(examined.audio.as_ref().map_or(Ok(()), |track| work.audio(track)));
            })?;
        }
        drop(events);
        let mut progress = Progress::new(&media);
        let outcome = forward(request, self.batch_frames, &queue, port, &mut |goes_on| {
            if goes_on {
                progress.note();
            }
            // A decoder that stalls says so itself.
            progress.check(self.limits.stall + END_TIME)
        });
        stopping.store(true, Ordering::Relaxed);
        drop(queue);
        crew.join(&media, END_TIME)?;
        outcome
    }
}

impl Stage for DecodeStage {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        input.segment.frames.saturating_add(input.segment.windows)
    }

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        self.decode(&Arc::new(input), port).map_err(|stop| match stop {
            Stop::Failed(error) => Stop::Failed(error.at(StageName::Decode)),
            other => other,
        })
    }
}

/// `media_not_found` for a file that was replaced after it was planned: it has other frames than the plan.
fn unchanged(path: &Path, planned: &str, info: &MediaInfo) -> Result<(), JobError> {
    if planned.is_empty() || planned == info.content_id {
        return Ok(());
    }
    let text = format!(
        "cannot decode {}: it changed after it was planned ({planned}, now {})",
        path.display(),
        info.content_id
    );
    Err(JobError::new(ErrorKind::MediaNotFound, text).hint("submit the job again"))
}

/// Message from a decoding thread to the calling one.
enum Event {
    Frame(Frame),
    /// The last frame has been sent.
    FramesDone,
    /// The exact plan, once the audio is decoded; none for silence or too few samples.
    Audio(Option<AudioPlan>),
    Window {
        index: u64,
        pcm: Vec<u8>,
    },
    Stopped(Stop),
}

/// Job as a decoding thread sees it.
struct Work {
    media: MediaFile,
    request: Arc<DecodeRequest>,
    limits: Limits,
    /// Set once the calling thread has stopped.
    stopping: Arc<AtomicBool>,
    events: SyncSender<Event>,
}

impl Work {
    fn report(&self, end: Result<(), Stop>) {
        if let Err(stop) = end {
            // The send fails only if the calling thread has stopped already.
            let _ = self.events.send(Event::Stopped(stop));
        }
    }

    fn send(&self, event: Event) -> Result<(), Stop> {
        self.events.send(event).map_err(|_| Stop::Cancelled)
    }

    fn video(&self, track: &VideoTrack, picks: Picks) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let mut deliver = |frame| self.send(Event::Frame(frame));
        video::decode(&self.media, track, picks, self.limits, &cancelled, &mut deliver)?;
        self.send(Event::FramesDone)
    }

    fn audio(&self, track: &AudioTrack) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let spool = audio::decode(&self.media, track, self.limits, &cancelled)?;
        let unreadable = |e: std::io::Error| audio::spool_failed(&e);
        let (start, end) = sample_range(spool.len(), self.request.span);
        let planned = self.request.plan.audio.as_ref().map_or(0, |a| a.windows);
        let segment = &self.request.segment;
        let whole = segment.first_window == 0 && segment.windows == planned;
        let mut plan = AudioPlan::new(end - start);
        if whole && spool.is_silent(start, end).map_err(unreadable)? {
            plan = None;
        }
        let exact = plan.as_ref().map_or(0, AudioPlan::encoded_windows);
        self.send(Event::Audio(plan))?;
        // The plan counted windows by the container's figure; the last segment takes as many as there are.
        let last = segment.first_window + segment.windows;
        let last = if last == planned { exact } else { last.min(exact) };
        for index in segment.first_window..last {
            let from = start + index * WINDOW_SAMPLES;
            let pcm = spool.read(from, WINDOW_SAMPLES.min(end - from)).map_err(unreadable)?;
            self.send(Event::Window { index, pcm })?;
        }
        Ok(())
    }
}

/// Forwards the queue to the port until both threads are done. `check` is told whether anything came, and may end it.
fn forward(
    request: &DecodeRequest,
    batch_frames: usize,
    queue: &Receiver<Event>,
    port: &mut dyn Port,
    check: &mut dyn FnMut(bool) -> Result<(), JobError>,
) -> Result<(), Stop> {
    let mut frames = FrameBatches::new(request, batch_frames);
    let mut windows = Windows::new(request);
    loop {
        if port.cancelled() {
            return Err(Stop::Cancelled);
        }
        let event = queue.recv_timeout(POLL);
        check(event.is_ok())?;
        match event {
            Ok(Event::Frame(frame)) => frames.push(&frame, port)?,
            Ok(Event::FramesDone) => frames.finish(port)?,
            Ok(Event::Audio(plan)) => {
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
