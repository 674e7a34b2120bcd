//! Room on disk and in memory for the streams of a broker of our own, and streams that fit it.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use config::{BusConfig, Storage};
use protocol::bytes::Bytes;
use protocol::memory;
use runtime::bus::size::bytes_in;

/// Share of the room on disk that streams may fill: a stream's files are larger than its messages, until the server clears them up.
const DISK_SHARE: (u64, u64) = (3, 4);
/// Share of the host's memory that streams may fill: the stages need some, and the server's own limit is three quarters of all.
const MEMORY_SHARE: (u64, u64) = (1, 2);
/// Share of that for all streams but the tokens, where there is little: they pass messages on, tokens stay for a job.
const PASSING: u64 = 4;
/// Least bytes of a stream of the data path: a few messages.
const LEAST_STREAM: i64 = 16 << 20;
/// Least bytes of the other streams.
const LEAST_QUEUE: i64 = 8 << 20;
/// Least bytes of the token stream: of a short video.
const LEAST_TOKENS: i64 = 64 << 20;

/// Room for the streams of a broker.
#[derive(Clone, Debug)]
pub struct Room {
    dir: PathBuf,
    /// Bytes that are free on disk for this user.
    free: u64,
    /// Bytes on disk that the broker's streams have already.
    held: u64,
    /// Bytes of memory that the host has left; none where the kernel does not say.
    memory: Option<u64>,
}

impl Room {
    /// Room in an existing directory, for streams of which some may be in `store` already, and in the host's memory.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(dir: &Path, store: &Path) -> anyhow::Result<Self> {
        let free = free_bytes(dir).with_context(|| format!("room in {}", dir.display()))?;
        Ok(Room { dir: dir.to_owned(), free, held: bytes_below(store), memory: memory::host_bytes() })
    }

    /// Makes the streams of a configuration as small as the room asks for; says so if it had to.
    ///
    /// # Errors
    /// That there is no room for the least streams, with the place, bytes free and bytes needed.
    pub fn fit(&self, bus: &mut BusConfig) -> Result<Option<String>, String> {
        let asked = bus.clone();
        let places = match bus.data_storage {
            Storage::File => vec![self.disk(true)],
            Storage::Memory => vec![self.disk(false), self.memory()],
        };
        let mut told = Vec::new();
        for place in places {
            told.extend(place.fit(&asked, bus)?);
        }
        Ok((!told.is_empty()).then(|| told.join("; ")))
    }

    fn disk(&self, has_data: bool) -> Place {
        let dir = self.dir.display();
        Place {
            storage: Storage::File,
            has_data,
            has_queues: true,
            free: self.free,
            held: self.held,
            share: DISK_SHARE,
            on: format!("in {dir}"),
            advice: "make room there, choose another directory (VIDI_STATE for `vidi up`, TMPDIR for `vidi ask` and `bench`), or \
                     name a broker elsewhere in bus.url",
        }
    }

    fn memory(&self) -> Place {
        Place {
            storage: Storage::Memory,
            has_data: true,
            has_queues: false,
            free: self.memory.unwrap_or(u64::MAX),
            held: 0,
            share: MEMORY_SHARE,
            on: "in the host's memory".to_owned(),
            advice: "end what else takes it, or keep them in files (bus.data_storage = \"file\")",
        }
    }
}

/// Where a broker keeps some of its streams.
struct Place {
    storage: Storage,
    /// Whether the data path and the tokens are here.
    has_data: bool,
    /// Whether the other streams are here.
    has_queues: bool,
    /// Bytes that are free here.
    free: u64,
    /// Bytes here that the streams have already.
    held: u64,
    /// Share of the room that streams may fill.
    share: (u64, u64),
    on: String,
    /// What to do where there is no room.
    advice: &'static str,
}

impl Place {
    /// Makes the streams that are here as small as the room asks for; says so if it had to.
    fn fit(&self, asked: &BusConfig, bus: &mut BusConfig) -> Result<Option<String>, String> {
        let (wanted, budget) = (bytes_in(self.storage, bus), self.share_of(self.free.saturating_add(self.held)));
        if wanted <= budget {
            return Ok(None);
        }
        let least = |here: bool, asked: i64, least: i64| if here { asked.min(least) } else { asked };
        let least_stream = least(self.has_data, asked.stream_bytes, LEAST_STREAM);
        let least_queue = least(self.has_queues, asked.queue_bytes, LEAST_QUEUE);
        let least_tokens = least(self.has_data, asked.token_bytes, LEAST_TOKENS);
        // Tokens stay for a job, all else passes on.
        let passing = if self.has_data { budget / PASSING } else { budget };
        while self.passing_bytes(bus) > passing && (bus.stream_bytes, bus.queue_bytes) != (least_stream, least_queue) {
            bus.stream_bytes = (bus.stream_bytes / 2).max(least_stream);
            bus.queue_bytes = (bus.queue_bytes / 2).max(least_queue);
        }
        if self.has_data {
            let rest = i64::try_from(budget.saturating_sub(self.passing_bytes(bus))).unwrap_or(i64::MAX);
            bus.token_bytes = rest.min(asked.token_bytes);
        }
        let (on, free) = (&self.on, Bytes(self.free));
        if bus.token_bytes < least_tokens || self.passing_bytes(bus) > budget {
            (bus.stream_bytes, bus.queue_bytes, bus.token_bytes) = (least_stream, least_queue, least_tokens);
            let needed = |bytes: u64| Bytes((bytes * self.share.1 / self.share.0).saturating_sub(self.held));
            return Err(format!(
                "no room for the broker's streams {on}: {free} free, {} needed at least, {} for streams of the size that is \
                 configured; {}",
                needed(bytes_in(self.storage, bus)),
                needed(wanted),
                self.advice
            ));
        }
        let shown = |bytes: i64| Bytes(bytes.max(0).unsigned_abs());
        let smaller = |what: &str, now: i64, asked: i64| format!("{what} {} instead of {}", shown(now), shown(asked));
        let mut parts = Vec::new();
        if self.has_data {
            parts.push(smaller("tokens", bus.token_bytes, asked.token_bytes));
            parts.push(smaller("frames, sound and features each", bus.stream_bytes, asked.stream_bytes));
        } else {
            parts.push(smaller("events and unusable messages each", bus.queue_bytes, asked.queue_bytes));
        }
        Ok(Some(format!("streams made smaller, since {free} are free {on}: {}", parts.join(", "))))
    }

    /// Bytes of all streams here but the tokens.
    fn passing_bytes(&self, bus: &BusConfig) -> u64 {
        let tokens = if self.has_data { bus.token_bytes.max(0).unsigned_abs() } else { 0 };
        bytes_in(self.storage, bus) - tokens
    }

    fn share_of(&self, bytes: u64) -> u64 {
        bytes / self.share.1 * self.share.0
    }
}

/// Bytes that this user may still write to the file system of a directory.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `found` has room for what is written there.
    if unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled it in.
    let found = unsafe { found.assume_init() };
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes on disk of all files below a directory; of what is gone meanwhile, none.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_below(&entry.path()),
        Ok(about) => about.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(free: u64, bus: &BusConfig) -> Result<BusConfig, String> {
        let mut bus = bus.clone();
        let room = Room { dir: PathBuf::from("/here"), free, held: 0, memory: Some(free) };
        room.fit(&mut bus).map(|_| bus)
    }

    #[test]
    fn streams_that_have_room_are_of_the_size_that_is_asked_for() {
        assert_eq!(fitted(8 << 30, &BusConfig::default()).unwrap(), BusConfig::default());
    }

    #[test]
    fn smaller_room_makes_smaller_streams_of_which_the_tokens_are_most_and_together_they_fit() {
        for mib in [214_u64, 300, 1000, 2000, 4000, 7000] {
            let (free, asked) = (mib << 20, BusConfig::default());
            let bus = fitted(free, &asked).unwrap();
            assert!(bytes_in(Storage::File, &bus) <= free / 4 * 3, "{mib} MiB: {bus:?}");
            assert!(bus.token_bytes >= LEAST_TOKENS && bus.token_bytes <= asked.token_bytes, "{mib} MiB: {bus:?}");
            assert!(bus.stream_bytes >= LEAST_STREAM && bus.queue_bytes >= LEAST_QUEUE, "{mib} MiB: {bus:?}");
            assert!(mib < 1000 || bus.token_bytes.unsigned_abs() * 2 > free / 4 * 3, "{mib} MiB: {bus:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_never_exceeded_however_little_it_is() {
        let asked =
            BusConfig { token_bytes: 400_000, stream_bytes: 4 << 20, queue_bytes: 1 << 20, ..BusConfig::default() };
        assert_eq!(fitted(30 << 20, &asked).unwrap(), asked);
        let bus = fitted(1 << 30, &BusConfig { stream_bytes: 4 << 20, ..BusConfig::default() }).unwrap();
        assert_eq!(bus.stream_bytes, 4 << 20);
    }

    #[test]
    fn too_little_room_is_told_with_directory_bytes_free_and_bytes_needed() {
        let said = fitted(100 << 20, &BusConfig::default()).unwrap_err();
        for word in ["/here", "100.0 MiB free", "213.3 MiB needed at least", "7.27 GiB for streams"] {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
        let needed = 214 << 20;
        assert!(fitted(needed, &BusConfig::default()).is_ok(), "the bytes that are said to be needed are not enough");
    }

    #[test]
    fn streams_in_memory_fit_half_of_it_and_those_on_disk_the_disk() {
        let asked = BusConfig { data_storage: Storage::Memory, ..BusConfig::default() };
        let fit = |disk_mib: u64, memory_mib: u64| {
            let mut bus = asked.clone();
            let memory = Some(memory_mib << 20);
            Room { dir: PathBuf::from("/here"), free: disk_mib << 20, held: 0, memory }
                .fit(&mut bus)
                .map(|told| (told, bus))
        };
        // Tokens need no disk.
        assert_eq!(fit(1000, 16 << 10).unwrap(), (None, asked.clone()));
        for memory in [300, 1000, 3000, 9000] {
            let (told, bus) = fit(1000, memory).unwrap();
            assert!(bytes_in(Storage::Memory, &bus) <= (memory << 20) / 2, "{memory} MiB: {bus:?}");
            assert!(bus.token_bytes >= LEAST_TOKENS && bus.stream_bytes >= LEAST_STREAM, "{memory} MiB: {bus:?}");
            assert_eq!(bus.queue_bytes, asked.queue_bytes, "{memory} MiB");
            assert!(told.unwrap().contains("free in the host's memory: tokens "), "{memory} MiB");
        }
        let (told, bus) = fit(300, 16 << 10).unwrap();
        assert!(bytes_in(Storage::File, &bus) <= 225 << 20 && bus.token_bytes == asked.token_bytes, "{bus:?}");
        assert!(told.unwrap().contains("events and unusable messages each 32.0 MiB instead of 256.0 MiB"));
        let said = fit(1000, 100).unwrap_err();
        for word in ["in the host's memory: 100.0 MiB free", "224.0 MiB needed at least", "bus.data_storage = \"file\""]
        {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
        assert!(fit(20, 16 << 10).unwrap_err().contains("in /here: 20.0 MiB free"));
    }

    #[test]
    fn streams_that_are_there_already_count_as_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store/deep");
        std::fs::create_dir_all(&store).unwrap();
        std::fs::write(store.join("messages"), vec![1u8; 1 << 20]).unwrap();
        let room = Room::of(dir.path(), &dir.path().join("store")).unwrap();
        assert!(room.held >= 1 << 20 && room.free > 0, "{room:?}");
        assert_eq!(Room::of(dir.path(), &dir.path().join("nothing")).unwrap().held, 0);
    }
}
