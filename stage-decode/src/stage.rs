//! Decode stage: from a [`DecodeRequest`] to frames and windows of audio.
//!
//! Two threads decode, one the video and one the audio, into one bounded queue; the calling thread empties it into the
//! port. The first of the three to stop stops the others, and no thread outlives [`DecodeStage::process`]. Whatever looks
//! into a file does so in a thread without a network.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::DecodeRequest;
use protocol::plan::{AudioPlan, MediaInfo, WINDOW_SAMPLES, frame_range, sample_range};
use protocol::stage::{Port, Stage, Stop};

use crate::audio;
use crate::batch::{FrameBatches, Windows};
use crate::failure;
use crate::media_file::MediaFile;
use crate::media_path::MediaRoots;
use crate::offline;
use crate::picks::Picks;
use crate::pipeline::Limits;
use crate::probe::{self, AudioTrack, Examined, VideoTrack};
use crate::video::{self, Frame};

/// Interval at which a waiting stage checks whether the job was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// Longest time of a probe: whoever asks for one on the bus waits for 30 s.
const PROBE_TIME: Duration = Duration::from_secs(28);
/// Capacity of the queue to the port; a frame has 0.4 MB, a window 1 MB.
const QUEUED: usize = 8;

/// Options of a [`DecodeStage`].
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Directories below which files may be opened.
    pub media_roots: Vec<PathBuf>,
    /// Largest number of frames per message; the bus splits further where its own limit is smaller.
    pub batch_frames: usize,
    /// Longest time that a decoder may make no progress.
    pub stall_timeout: Duration,
    /// Longest time that a probe may take, in which whoever asks for one waits.
    pub probe_time: Duration,
    /// Largest number of pixels of a picture; larger ones are refused before they are decoded.
    pub max_pixels: u64,
}

impl DecodeOptions {
    /// Default options: 8 frames per message, 30 s without progress, 28 s for a probe, pictures of up to 8192 x 4320.
    pub fn new<P: Into<PathBuf>>(media_roots: impl IntoIterator<Item = P>) -> Self {
        DecodeOptions {
            media_roots: media_roots.into_iter().map(Into::into).collect(),
            batch_frames: 8,
            stall_timeout: Duration::from_secs(30),
            probe_time: PROBE_TIME,
            max_pixels: 8192 * 4320,
        }
    }
}

/// Stage that decodes video files into frames and PCM windows.
pub struct DecodeStage {
    roots: MediaRoots,
    batch_frames: usize,
    probe_time: Duration,
    limits: Limits,
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
        Ok(DecodeStage { roots, batch_frames: config.batch_frames.max(1), probe_time: config.probe_time, limits })
    }

    /// Facts of a file below the media roots, without decoding it.
    ///
    /// # Errors
    /// `media_not_found`, `forbidden_path`, `unsupported_media`, and `bad_request` for text that names no file.
    pub fn probe(&self, video: &str) -> Result<MediaInfo, JobError> {
        let began = Instant::now();
        let media = self.roots.open(video).map_err(|error| error.at(StageName::Decode))?;
        let examined = self.examine(&media, &|| began.elapsed() > self.probe_time);
        examined.map(|e| e.info).map_err(|stop| match stop {
            Stop::Failed(error) => error.at(StageName::Decode),
            _ => failure::endless(media.path(), self.probe_time.as_secs_f64()).at(StageName::Decode),
        })
    }

    /// Examines a file in a thread of its own, until `cancelled` says that nobody waits for it.
    fn examine(&self, media: &MediaFile, cancelled: &dyn Fn() -> bool) -> Result<Examined, Stop> {
        let stopping = &AtomicBool::new(cancelled());
        thread::scope(|scope| {
            let (running, ended) = sync_channel::<()>(0);
            let probe = move || {
                // Dropped at the end, which wakes the thread that waits.
                let _running = running;
                probe::examine(media, self.limits, &|| stopping.load(Ordering::Relaxed))
            };
            let thread = offline::spawn(scope, "decode-probe", probe)?;
            while ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                stopping.fetch_or(cancelled(), Ordering::Relaxed);
            }
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn decode(&self, request: &DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let media = self.roots.open(&request.video)?;
        let examined = self.examine(&media, &|| port.cancelled())?;
        let path = media.path();
        unchanged(path, &request.plan.content_id, &examined.info)?;
        let absent = |what: &str| failure::unsupported(path, &format!("the plan has {what}, but the file has none"));
        let video = match &request.plan.image {
            Some(image) if request.segment.frames > 0 => {
                let (first, _) = frame_range(&examined.info, request.span);
                let first = first + request.segment.first_frame * image.frame_step;
                let picks = Picks { first, step: image.frame_step, count: request.segment.frames };
                Some((examined.video.as_ref().ok_or_else(|| absent("frames"))?, picks))
            }
            _ => None,
        };
        let audio = match &request.plan.audio {
            Some(_) if request.segment.windows > 0 => Some(examined.audio.as_ref().ok_or_else(|| absent("audio"))?),
            _ => None,
        };
        let work = Work { media: &media, request, limits: self.limits, stopping: AtomicBool::new(false) };
        let work = &work;
        thread::scope(|scope| {
            let (events, queue) = sync_channel(QUEUED);
            let mut threads = Vec::new();
            if let Some((track, picks)) = video {
                let events = events.clone();
                let decode = move || work.report(&events, work.video(track, picks, &events));
                threads.push(offline::spawn(scope, "decode-video", decode));
            }
            if let Some(track) = audio {
                let events = events.clone();
                let decode = move || work.report(&events, work.audio(track, &events));
                threads.push(offline::spawn(scope, "decode-audio", decode));
            }
            drop(events);
            let outcome = forward(request, self.batch_frames, queue, port);
            work.stopping.store(true, Ordering::Relaxed);
            for thread in threads {
                thread?.join().map_err(|_| internal("a decoding thread panicked. This is a bug."))?;
            }
            outcome
        })
    }
}

impl Stage for DecodeStage {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        input.segment.frames.saturating_add(input.segment.windows)
    }

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        self.decode(&input, port).map_err(|stop| match stop {
            Stop::Failed(error) => Stop::Failed(error.at(StageName::Decode)),
            other => other,
        })
    }
}

fn internal(what: &str) -> JobError {
    JobError::new(ErrorKind::Internal, what)
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

/// Job as both decoding threads see it.
struct Work<'a> {
    media: &'a MediaFile,
    request: &'a DecodeRequest,
    limits: Limits,
    /// Set once the calling thread has stopped.
    stopping: AtomicBool,
}

impl Work<'_> {
    fn report(&self, events: &SyncSender<Event>, end: Result<(), Stop>) {
        if let Err(stop) = end {
            // The send fails only if the calling thread has stopped already.
            let _ = events.send(Event::Stopped(stop));
        }
    }

    fn video(&self, track: &VideoTrack, picks: Picks, events: &SyncSender<Event>) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let mut deliver = |frame| send(events, Event::Frame(frame));
        video::decode(self.media, track, picks, self.limits, &cancelled, &mut deliver)?;
        send(events, Event::FramesDone)
    }

    fn audio(&self, track: &AudioTrack, events: &SyncSender<Event>) -> Result<(), Stop> {
        let cancelled = || self.stopping.load(Ordering::Relaxed);
        let spool = audio::decode(self.media, track, self.limits, &cancelled)?;
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
        send(events, Event::Audio(plan))?;
        // The plan counted windows by the container's figure; the last segment takes as many as there are.
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

/// Forwards the queue to the port until both threads are done.
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
