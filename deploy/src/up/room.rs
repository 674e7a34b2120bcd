//! Room on disk for the streams of a broker of our own, and streams that fit it.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use config::BusConfig;
use protocol::bytes::Bytes;
use runtime::bus::size::all_bytes;

/// Share of the room that streams may fill: a stream's files are larger than its messages, until the server clears them up.
const SHARE: (u64, u64) = (3, 4);
/// Share of that for all streams but the tokens, where there is little: they pass messages on, tokens stay for a job.
const PASSING: u64 = 4;
/// Least bytes of a stream of the data path: a few messages.
const LEAST_STREAM: i64 = 16 << 20;
/// Least bytes of the other streams.
const LEAST_QUEUE: i64 = 8 << 20;
/// Least bytes of the token stream: of a short video.
const LEAST_TOKENS: i64 = 64 << 20;

/// Room on the disk of a broker.
#[derive(Clone, Debug)]
pub struct Room {
    dir: PathBuf,
    /// Bytes that are free for this user.
    free: u64,
    /// Bytes that the broker's streams have already.
    held: u64,
}

impl Room {
    /// Room in an existing directory, for streams of which some may be in `store` already.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(dir: &Path, store: &Path) -> anyhow::Result<Self> {
        let free = free_bytes(dir).with_context(|| format!("room in {}", dir.display()))?;
        Ok(Room { dir: dir.to_owned(), free, held: bytes_below(store) })
    }

    /// Makes the streams of a configuration as small as the room asks for; says so if it had to.
    ///
    /// # Errors
    /// That there is no room for the least streams, with directory, bytes free and bytes needed.
    pub fn fit(&self, bus: &mut BusConfig) -> Result<Option<String>, String> {
        let (wanted, budget) = (all_bytes(bus), share_of(self.free.saturating_add(self.held)));
        if wanted <= budget {
            return Ok(None);
        }
        let asked = bus.clone();
        let least = |asked: i64, least: i64| asked.min(least);
        let (least_stream, least_queue) =
            (least(asked.stream_bytes, LEAST_STREAM), least(asked.queue_bytes, LEAST_QUEUE));
        while passing_bytes(bus) > budget / PASSING
            && (bus.stream_bytes, bus.queue_bytes) != (least_stream, least_queue)
        {
            bus.stream_bytes = (bus.stream_bytes / 2).max(least_stream);
            bus.queue_bytes = (bus.queue_bytes / 2).max(least_queue);
        }
        let rest = i64::try_from(budget.saturating_sub(passing_bytes(bus))).unwrap_or(i64::MAX);
        bus.token_bytes = rest.min(asked.token_bytes);
        let (dir, free) = (self.dir.display(), Bytes(self.free));
        if bus.token_bytes < least(asked.token_bytes, LEAST_TOKENS) {
            bus.token_bytes = least(asked.token_bytes, LEAST_TOKENS);
            (bus.stream_bytes, bus.queue_bytes) = (least_stream, least_queue);
            let needed = |bytes: u64| Bytes((bytes * SHARE.1 / SHARE.0).saturating_sub(self.held));
            return Err(format!(
                "no room for the broker's streams in {dir}: {free} free, {} needed at least, {} for streams of the size that is \
                 configured; make room there, choose another directory (VIDI_STATE for `vidi up`, TMPDIR for `vidi ask` and \
                 `bench`), or name a broker elsewhere in bus.url",
                needed(all_bytes(bus)),
                needed(wanted)
            ));
        }
        let shown = |bytes: i64| Bytes(bytes.max(0).unsigned_abs());
        Ok(Some(format!(
            "streams made smaller, since {dir} has {free} free: tokens {} instead of {}, frames, sound and features {} each \
             instead of {}",
            shown(bus.token_bytes),
            shown(asked.token_bytes),
            shown(bus.stream_bytes),
            shown(asked.stream_bytes)
        )))
    }
}

/// Bytes of all streams but the tokens.
fn passing_bytes(bus: &BusConfig) -> u64 {
    all_bytes(bus) - bus.token_bytes.max(0).unsigned_abs()
}

fn share_of(bytes: u64) -> u64 {
    bytes / SHARE.1 * SHARE.0
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
        let room = Room { dir: PathBuf::from("/here"), free, held: 0 };
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
            assert!(all_bytes(&bus) <= share_of(free), "{mib} MiB: {bus:?}");
            assert!(bus.token_bytes >= LEAST_TOKENS && bus.token_bytes <= asked.token_bytes, "{mib} MiB: {bus:?}");
            assert!(bus.stream_bytes >= LEAST_STREAM && bus.queue_bytes >= LEAST_QUEUE, "{mib} MiB: {bus:?}");
            assert!(mib < 1000 || bus.token_bytes.unsigned_abs() * 2 > share_of(free), "{mib} MiB: {bus:?}");
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
