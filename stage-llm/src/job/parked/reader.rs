//! Reading of a parked video, straight to its place: several layers at a time, each checked against its checksum.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use candle_core::{Device, Tensor};
use compute::staging::Staging;
use protocol::plan::MediaPlan;
use protocol::stage::Stop;

use crate::job::compact::compacted;
use crate::job::parked::format::{Head, Key, Layout, hex};
use crate::job::parked::parking::PIECE_BYTES;
use crate::job::pictures::Pictures;
use crate::language::cache::{Geometry, MediaCache, VideoCache};

/// Threads that read: one alone keeps neither a fast disk busy nor the way to a GPU.
const THREADS: usize = 4;
/// Pause between two looks at whether anybody still waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Parked video whose head was read and is in order.
#[derive(Debug)]
pub struct Found {
    /// Name of its file, without the ending.
    pub name: String,
    /// The file.
    pub file: File,
    head: Head,
    layout: Layout,
}

/// Reason for which a parked video was not read.
#[derive(Debug)]
pub enum Unread {
    /// The file is not what its writer wrote: what is wrong with it.
    Damaged(String),
    /// The device did not take it.
    Device(candle_core::Error),
    /// Nobody waits for it any more.
    Stop(Stop),
}

/// How far a read is: bytes done, and of how many.
pub type Tell<'a> = dyn FnMut(u64, u64) -> Result<(), Stop> + 'a;

impl Found {
    /// Looks into a file, before anything is allocated for it.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn new(name: String, file: File, key: &Key, geometry: &Geometry) -> Result<Self, (File, String)> {
        match Head::read(&file).and_then(|head| head.layout(key, geometry).map(|layout| (head, layout))) {
            Ok((head, layout)) => Ok(Found { name, file, head, layout }),
            Err(why) => Err((file, why)),
        }
    }

    /// Plan of the video, all of it settled.
    pub fn plan(&self) -> &MediaPlan {
        &self.head.description.plan
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// Reads it to memory of its own on a device.
    ///
    /// # Errors
    /// See [`Unread`]; nothing of it is left then.
    pub fn read(
        &self,
        geometry: &Geometry,
        device: &Device,
        tell: &mut Tell<'_>,
    ) -> Result<(VideoCache, Pictures), Unread> {
        let plan = self.plan();
        let allocated = |tokens: u64| {
            let mut cache = compacted(|| MediaCache::new(geometry, tokens, device))?;
            cache.claim(0..tokens);
            Ok(cache)
        };
        let image = plan.image.as_ref().map(|image| allocated(image.tokens)).transpose().map_err(Unread::Device)?;
        let audio = plan.audio.as_ref().map(|audio| allocated(audio.tokens)).transpose().map_err(Unread::Device)?;
        let video = VideoCache { image, audio };
        let buffers: Vec<Tensor> = video.present().flat_map(MediaCache::buffers).cloned().collect();
        let numbers = Mutex::new(Vec::new());
        self.read_sections(device, &buffers, &numbers, tell)?;
        let numbers = numbers.into_inner().unwrap_or_default();
        let pictures = match plan.image {
            None => Pictures::default(),
            Some(_) => Pictures::from_bytes(plan, &numbers, self.head.description.picture_numbers)
                .ok_or_else(|| Unread::Damaged("the numbers of its pictures are not of its frames".to_owned()))?,
        };
        Ok((video, pictures))
    }

    /// Reads all sections on several threads; this one tells how far they are.
    fn read_sections(
        &self,
        device: &Device,
        buffers: &[Tensor],
        numbers: &Mutex<Vec<u8>>,
        tell: &mut Tell<'_>,
    ) -> Result<(), Unread> {
        let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let threads = THREADS.min(self.layout.sections.len()).max(1);
        let (ended, ends) = channel();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let ended = ended.clone();
                let (next, done, stop) = (&next, &done, &stop);
                scope.spawn(move || {
                    let outcome = self.read_some(device, buffers, numbers, next, done, stop);
                    stop.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    // The other end is there until all threads have ended.
                    let _ = ended.send(outcome);
                });
            }
            drop(ended);
            let mut outcome = Ok(());
            loop {
                match ends.recv_timeout(LOOK_EVERY) {
                    Ok(Ok(())) => {}
                    Ok(failed) => outcome = outcome.and(failed),
                    Err(RecvTimeoutError::Timeout) => {
                        if let Err(stopped) = tell(done.load(Ordering::Relaxed), self.layout.bytes) {
                            stop.store(true, Ordering::Relaxed);
                            outcome = outcome.and(Err(Unread::Stop(stopped)));
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => return outcome,
                }
            }
        })
    }

    /// Reads one section after the other, until none is left or `stop` says so.
    fn read_some(
        &self,
        device: &Device,
        buffers: &[Tensor],
        numbers: &Mutex<Vec<u8>>,
        next: &AtomicUsize,
        done: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<(), Unread> {
        let mut staging = Staging::new(device, PIECE_BYTES).map_err(Unread::Device)?;
        loop {
            let section = next.fetch_add(1, Ordering::Relaxed);
            let Some(pieces) = self.layout.sections.get(section) else { return Ok(()) };
            let mut crc32 = crc32fast::Hasher::new();
            for i in pieces.clone() {
                let piece = &self.layout.pieces[i];
                let mut at = 0;
                while at < piece.bytes {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    let n = (piece.bytes - at).min(PIECE_BYTES as u64) as usize;
                    let to = staging.fill(n).map_err(Unread::Device)?;
                    let place = self.head.data_at + piece.at + at;
                    let wrong = |e| Unread::Damaged(format!("{n} bytes at {place} cannot be read: {e}"));
                    self.file.read_exact_at(to, place).map_err(wrong)?;
                    crc32.update(to);
                    match buffers.get(i) {
                        Some(buffer) => staging.write(buffer, at as usize, n).map_err(Unread::Device)?,
                        // What comes behind the buffers is the pictures' numbers, which one thread reads.
                        None => numbers.lock().map_or((), |mut numbers| numbers.extend_from_slice(to)),
                    }
                    at += n as u64;
                    done.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
            let (got, wanted) = (hex(crc32.finalize()), &self.head.description.crc32[section]);
            if got != *wanted {
                let first = pieces.clone().next().map(|i| self.layout.pieces[i].at).unwrap_or_default();
                let bytes: u64 = pieces.clone().map(|i| self.layout.pieces[i].bytes).sum();
                return Err(Unread::Damaged(format!(
                    "section {section} ({bytes} bytes at {}) has the checksum {got}, not {wanted}",
                    self.head.data_at + first
                )));
            }
        }
    }
}
