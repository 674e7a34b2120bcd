//! Videos whose keys and values are on disk: a question about one reads them, also after the process that computed them has ended.
//!
//! In reading order: [`format`](mod@format) (what a file holds, and what it is found by), [`directory`] (files under a quota, shared by
//! processes), [`parking`] (keys and values on their way there), [`writer`] (the thread that writes them), [`reader`] (back to their
//! place), this file (what a stage does with them), [`list`] (what a person sees).

pub mod directory;
pub mod format;
pub mod list;
pub mod parking;
pub mod reader;
pub mod writer;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use candle_core::Device;
use compute::transfer::Marker;
use protocol::event::ModelName;
use protocol::memory;
use protocol::stage::KeptVideo;

use crate::job::pictures::Pictures;
use crate::job::video::{Video, VideoKey};
use crate::language::cache::{Geometry, MediaCache, VideoCache};
use directory::Directory;
use format::{Description, Head, Identity, Key, Layout};
use parking::Parking;
use reader::{Found, Tell, Unread};
use writer::{Ended, Task, Writer};

/// Host memory that a copy of a video leaves to others.
const SPARE_HOST_BYTES: u64 = 4 << 30;

/// Model whose videos are parked.
#[derive(Clone, Debug)]
pub struct Model {
    /// What its keys and values depend on.
    pub identity: Identity,
    /// What results call it.
    pub name: ModelName,
    /// Shape and formats of its cache.
    pub geometry: Geometry,
    /// Device that it computes on.
    pub device: Device,
}

/// Parked videos of a model.
pub struct Parked {
    directory: Directory,
    model: Model,
    writer: Writer,
    /// Files that were found damaged.
    damaged: Cell<u64>,
    /// What files that were looked into are about; none for those of another model.
    known: RefCell<HashMap<String, Option<KeptVideo>>>,
}

impl Parked {
    /// Parked videos in a directory, whose files take `quota` bytes together at most; `ended` hears of each file once nobody writes
    /// it any more.
    ///
    /// # Errors
    /// When the system gives no thread to write with. A directory that cannot be used is said to the log.
    pub fn open(directory: &Path, quota: u64, model: Model, ended: Ended) -> std::io::Result<Self> {
        let directory = Directory::new(directory);
        let writer = Writer::start(directory.clone(), quota, model.device.clone(), ended)?;
        Ok(Parked { directory, model, writer, damaged: Cell::new(0), known: RefCell::default() })
    }

    /// Name of a video's file, without the ending.
    pub fn name(&self, key: &VideoKey) -> String {
        self.key(key).name()
    }

    fn key(&self, key: &VideoKey) -> Key {
        Key::new(key, &self.model.identity)
    }

    /// Parked video with this key, its head looked into. A file that is damaged, or not what its name says, is removed and counted.
    pub fn find(&self, key: &VideoKey) -> Option<Found> {
        let key = self.key(key);
        let name = key.name();
        let path = self.directory.place(&name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a parked video cannot be read: its video is computed again");
                return None;
            }
        };
        match Found::new(name, file, &key, &self.model.geometry) {
            Ok(found) => Some(found),
            Err((file, why)) => {
                self.discard(&key.name(), &file, &why);
                None
            }
        }
    }

    /// Reads a parked video to the model's device. A file that is damaged is removed and counted.
    ///
    /// # Errors
    /// See [`Unread`].
    pub fn read(&self, found: &Found, tell: &mut Tell<'_>) -> Result<(VideoCache, Pictures), Unread> {
        let started = Instant::now();
        let outcome = found.read(&self.model.geometry, &self.model.device, tell);
        match &outcome {
            Ok(_) => {
                let (bytes, seconds) = (found.bytes(), started.elapsed().as_secs_f64());
                let mb_per_s = bytes as f64 / seconds / 1e6;
                tracing::info!(video = found.name, bytes, seconds, mb_per_s, "parked video read");
                used(&found.name, &found.file);
            }
            Err(Unread::Damaged(why)) => self.discard(&found.name, &found.file, why),
            Err(Unread::Device(error)) => {
                tracing::warn!(video = found.name, %error, "parked video not read: its video is computed again");
            }
            Err(Unread::Stop(_)) => {}
        }
        outcome
    }

    /// Writes a video in the background, unless that was done or is being done.
    pub fn park(&self, video: &Video) {
        let Some(key) = video.key.as_ref().map(|key| self.key(key)) else { return };
        let name = key.name();
        if self.writer.waiting(&name).is_some() {
            return;
        }
        if let Ok(there) = File::open(self.directory.place(&name)) {
            used(&name, &there);
            return;
        }
        let computed = match Marker::behind(&self.model.device) {
            Ok(computed) => computed,
            Err(error) => {
                tracing::warn!(video = name, %error, "video not parked");
                return;
            }
        };
        let (pictures, picture_numbers) = match video.plan.image {
            Some(_) => video.pictures.to_bytes(),
            None => (Vec::new(), 0),
        };
        let layout = Layout::new(&self.model.geometry, &video.plan, picture_numbers);
        let KeptVideo { video: path, span, fps } = video.asked.clone();
        let description = Description {
            key,
            model: self.model.name.clone(),
            video: path,
            span,
            fps,
            plan: video.plan.clone(),
            picture_numbers,
            data_bytes: layout.bytes,
            crc32: Vec::new(),
        };
        let buffers = video.cache.present().flat_map(MediaCache::buffers).cloned().collect();
        let parking = Arc::new(Parking::new(name, layout, buffers));
        self.writer.write(Task { parking, description, pictures, computed });
    }

    /// Whether a video is on its way to disk, so that its memory is still needed.
    pub fn is_waiting(&self, key: &VideoKey) -> bool {
        self.writer.waiting(&self.name(key)).is_some()
    }

    /// Lets go of a video's memory on its device: if it is not written yet, that goes on from a copy on the host where there is room
    /// for it, else the file is given up.
    pub fn release(&self, key: &VideoKey) {
        let Some(parking) = self.writer.waiting(&self.name(key)) else { return };
        let needed = parking.layout.bytes.saturating_add(SPARE_HOST_BYTES);
        let has_room = self.model.device.is_cuda() && memory::host_bytes().is_some_and(|free| free >= needed);
        parking.release(has_room);
    }

    /// Forgets a video whose keys and values may be wrong, written or not.
    pub fn forget(&self, key: &VideoKey) {
        let name = self.name(key);
        if let Some(parking) = self.writer.waiting(&name) {
            parking.give_up();
        }
        match self.directory.remove(&name) {
            Ok(true) => tracing::warn!(video = name, "parked video removed: a job about it failed in the model"),
            Ok(false) => {}
            Err(error) => tracing::warn!(video = name, %error, "a parked video that may be wrong was not removed"),
        }
    }

    /// Parked videos of this model as the requests about them named them, the last one used first.
    pub fn names(&self) -> Vec<KeptVideo> {
        let mut files = self.directory.files().unwrap_or_default();
        let mut known = self.known.borrow_mut();
        known.retain(|name, _| files.iter().any(|file| file.name == *name));
        files.reverse();
        let about = |file: &directory::ParkedFile| {
            let read = || {
                let head = File::open(&file.path).ok().and_then(|file| Head::read(&file).ok())?;
                head.description.key.is_of(&self.model.identity).then(|| head.description.asked())
            };
            known.entry(file.name.clone()).or_insert_with(read).clone()
        };
        files.iter().filter_map(about).collect()
    }

    /// Number of files that were found damaged so far.
    pub fn damaged(&self) -> u64 {
        self.damaged.get()
    }

    fn discard(&self, name: &str, file: &File, why: &str) {
        self.damaged.set(self.damaged.get() + 1);
        let bytes = file.metadata().map_or(0, |data| data.len());
        let removed = self.directory.discard(name, file);
        let (damaged, path) = (self.damaged.get(), self.directory.place(name));
        tracing::warn!(
            path = %path.display(),
            bytes,
            damaged,
            ?removed,
            "parked video discarded, its video is computed again: {why}"
        );
    }
}

/// Notes that a file was used: it is the last one to go.
fn used(name: &str, file: &File) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(video = name, %error, "the use of a parked video was not noted");
    }
}
