//! Bytes that each stream may hold, and that the server reserves for it.

use config::{BusConfig, Storage};

use crate::subject::StreamName;

/// Bytes of requests that may wait to be admitted; of admitted jobs in line and of requests to decode likewise.
const JOB_BYTES: i64 = 64 << 20;
/// Bytes of events of all jobs; the oldest go first.
const EVENT_BYTES: i64 = 256 << 20;
/// Bytes of unusable messages kept for an operator; the oldest go first.
const DEAD_BYTES: i64 = 256 << 20;
/// Bytes of the ledger of the token stream's capacity: one message, replaced by every newer one.
const CAPACITY_BYTES: i64 = 16 << 20;

/// Bytes that a stream may hold.
pub fn stream_bytes(name: StreamName, config: &BusConfig) -> i64 {
    match name {
        StreamName::Frames | StreamName::Audio | StreamName::Features => config.stream_bytes,
        StreamName::Tokens => config.token_bytes,
        StreamName::Jobs | StreamName::Line | StreamName::Decode => config.queue_bytes.min(JOB_BYTES),
        StreamName::Events => config.queue_bytes.min(EVENT_BYTES),
        StreamName::Dead => config.queue_bytes.min(DEAD_BYTES),
        StreamName::Capacity => config.queue_bytes.min(CAPACITY_BYTES),
    }
}

/// Where the broker keeps a stream: what it has lost of the data path and of tokens is made again, all else has to be there
/// again when it is.
pub fn storage(name: StreamName, config: &BusConfig) -> Storage {
    match name {
        StreamName::Frames | StreamName::Audio | StreamName::Features | StreamName::Tokens => config.data_storage,
        StreamName::Jobs
        | StreamName::Line
        | StreamName::Decode
        | StreamName::Events
        | StreamName::Dead
        | StreamName::Capacity => Storage::File,
    }
}

/// Bytes that all streams together may hold that the broker keeps in one place.
pub fn bytes_in(place: Storage, config: &BusConfig) -> u64 {
    let here = StreamName::ALL.iter().filter(|&&name| storage(name, config) == place);
    here.map(|&name| stream_bytes(name, config).max(0).unsigned_abs()).sum()
}
