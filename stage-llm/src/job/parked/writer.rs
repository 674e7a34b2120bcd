//! Writing of parked videos: by a thread of its own, at low priority, one after the other.

use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use candle_core::Device;
use compute::staging::Staging;
use compute::transfer::Marker;

use crate::job::parked::directory::{Begun, Directory, Place};
use crate::job::parked::format::{Description, hex};
use crate::job::parked::parking::{PIECE_BYTES, Parking};

/// Bytes after which what was written goes to the disk: no burst at the end holds up who reads from it.
const SYNC_BYTES: u64 = 256 << 20;
/// Niceness of the thread: whoever computes goes first.
const NICE: i32 = 10;

/// Video that is to be written.
pub struct Task {
    /// Its keys and values.
    pub parking: Arc<Parking>,
    /// What the file says of them; without checksums, which the writer adds.
    pub description: Description,
    /// Numbers of its pictures.
    pub pictures: Vec<u8>,
    /// Behind what computes the keys and values on their device.
    pub computed: Marker,
}

/// Hears of each file once nobody writes it any more.
pub type Ended = Box<dyn Fn(&Parking) + Send>;

/// Thread that writes videos. Dropping it waits until all that it was given are written.
pub struct Writer {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    waiting: Arc<Mutex<Vec<Arc<Parking>>>>,
}

impl Writer {
    /// Starts the thread, which first removes what killed processes have left.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(directory: Directory, quota: u64, device: Device, ended: Ended) -> std::io::Result<Self> {
        let (tasks, queue) = channel();
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let of_thread = waiting.clone();
        let thread = std::thread::Builder::new()
            .name("parking".to_owned())
            .spawn(move || work(&directory, quota, &device, &queue, &of_thread, &*ended))?;
        Ok(Writer { tasks: Some(tasks), thread: Some(thread), waiting })
    }

    /// Gives it a video.
    pub fn write(&self, task: Task) {
        lock(&self.waiting).push(task.parking.clone());
        if let Some(tasks) = &self.tasks {
            // Its thread ends with this value; one that panicked writes nothing more.
            let _ = tasks.send(task);
        }
    }

    /// Video that is not written yet, by its name.
    pub fn waiting(&self, name: &str) -> Option<Arc<Parking>> {
        lock(&self.waiting).iter().find(|parking| parking.name == name).cloned()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.tasks.take());
        if let Some(thread) = self.thread.take() {
            let left = lock(&self.waiting).len();
            if left > 0 {
                tracing::info!(videos = left, "waiting until videos are parked");
            }
            let _ = thread.join();
        }
    }
}

fn lock(waiting: &Mutex<Vec<Arc<Parking>>>) -> std::sync::MutexGuard<'_, Vec<Arc<Parking>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(
    directory: &Directory,
    quota: u64,
    device: &Device,
    queue: &Receiver<Task>,
    waiting: &Mutex<Vec<Arc<Parking>>>,
    ended: &dyn Fn(&Parking),
) {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "videos are parked at normal priority");
    }
    match directory.prepare() {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "unfinished parked videos of killed processes removed"),
        Err(error) => {
            let path = directory.path().display();
            tracing::warn!(%path, %error, "llm.park_dir cannot be used, videos are not parked until it can");
        }
    }
    let mut staging = None;
    for mut task in queue {
        let started = Instant::now();
        let (name, bytes) = (task.parking.name.clone(), task.parking.layout.bytes);
        let outcome = write(directory, quota, device, &mut task, &mut staging);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(Written::Whole) => {
                let rate = bytes as f64 / seconds / 1e6;
                tracing::info!(video = name, bytes, seconds, mb_per_s = rate, "video parked");
            }
            Ok(Written::Not(why)) => tracing::info!(video = name, bytes, "video not parked: {why}"),
            Err(error) => {
                let path = directory.path().display();
                tracing::warn!(video = name, bytes, %path, "video not parked: {error}; check llm.park_dir");
            }
        }
        task.parking.give_up();
        lock(waiting).retain(|parking| !Arc::ptr_eq(parking, &task.parking));
        ended(&task.parking);
    }
}

/// End of a file's writing.
enum Written {
    Whole,
    /// For this reason.
    Not(String),
}

fn write(
    directory: &Directory,
    quota: u64,
    device: &Device,
    task: &mut Task,
    staging: &mut Option<Staging>,
) -> Result<Written, String> {
    task.computed.wait().map_err(|e| e.to_string())?;
    let head = match task.description_of(&[]).and_then(|description| task.parking.layout.head(&description)) {
        Ok(head) => head,
        Err(why) => return Ok(Written::Not(why)),
    };
    let bytes = head.len() as u64 + task.parking.layout.bytes;
    let begun = match directory.begin(&task.parking.name, bytes, quota).map_err(|e| e.to_string())? {
        Place::Free(begun) => begun,
        Place::Taken => return Ok(Written::Not("it is there already, or another process writes it".to_owned())),
        Place::Refused(why) => return Err(why),
    };
    if staging.is_none() {
        *staging = Some(Staging::new(device, PIECE_BYTES).map_err(|e| e.to_string())?);
    }
    let staging = staging.as_mut().expect("it was just made. This is a bug.");
    let mut checksums = Vec::new();
    let mut unsynced = 0;
    for section in &task.parking.layout.sections {
        let mut crc32 = crc32fast::Hasher::new();
        for i in section.clone() {
            if !write_piece(task, i, head.len() as u64, &begun, staging, &mut crc32)? {
                return Ok(Written::Not("its memory was needed before it was written".to_owned()));
            }
            unsynced += task.parking.layout.pieces[i].bytes;
            if unsynced >= SYNC_BYTES {
                begun.file().sync_data().map_err(|e| e.to_string())?;
                unsynced = 0;
            }
        }
        checksums.push(crc32.finalize());
    }
    // The head comes last: a file without it is none.
    let head = task.description_of(&checksums).and_then(|description| task.parking.layout.head(&description))?;
    begun.file().write_all_at(&head, 0).map_err(|e| e.to_string())?;
    begun.finish().map_err(|e| e.to_string())?;
    Ok(Written::Whole)
}

/// Writes tensor `i` behind a head of `data_at` bytes; false once the keys and values were given up.
fn write_piece(
    task: &Task,
    i: usize,
    data_at: u64,
    begun: &Begun,
    staging: &mut Staging,
    crc32: &mut crc32fast::Hasher,
) -> Result<bool, String> {
    let piece = &task.parking.layout.pieces[i];
    let is_pictures = i + 1 == task.parking.layout.pieces.len() && !task.pictures.is_empty();
    let mut at = 0;
    while at < piece.bytes {
        let n = (piece.bytes - at).min(PIECE_BYTES as u64) as usize;
        let bytes = match is_pictures {
            true => Some(&task.pictures[at as usize..][..n]),
            false => task.parking.read(i, at as usize, n, staging).map_err(|e| e.to_string())?,
        };
        let Some(bytes) = bytes else { return Ok(false) };
        crc32.update(bytes);
        begun.file().write_all_at(bytes, data_at + piece.at + at).map_err(|e| e.to_string())?;
        at += n as u64;
    }
    Ok(true)
}

impl Task {
    /// Description with these checksums; without any, with as many zeros.
    fn description_of(&self, checksums: &[u32]) -> Result<Description, String> {
        let count = self.parking.layout.sections.len();
        let crc32 = (0..count).map(|i| hex(checksums.get(i).copied().unwrap_or(0))).collect();
        Ok(Description { crc32, ..self.description.clone() })
    }
}
