//! Settings that streams are made with, and what is told of one that exists with others.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use config::{BusConfig, Storage};
use protocol::bytes::Bytes;

use super::size::{storage, stream_bytes};
use crate::subject::{StreamName, Subjects};

/// Window in which a second publish of the same `Nats-Msg-Id` is dropped.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Work on a job stays no longer, whoever forgot it.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Servers of a cluster that hold a stream. What a client was told is there (accepted jobs, wherever they wait, and events)
/// is not lost with one of them; work on a job is asked for again.
pub(super) fn replicas(name: StreamName, config: &BusConfig) -> usize {
    match name {
        StreamName::Jobs | StreamName::Line | StreamName::Events | StreamName::Dead | StreamName::Capacity => {
            config.replicas
        }
        StreamName::Decode | StreamName::Frames | StreamName::Audio | StreamName::Features | StreamName::Tokens => 1,
    }
}

/// Settings of a stream. Its durable consumers are held by as many servers as the stream itself (their `num_replicas` is 0).
pub(super) fn stream_config(name: StreamName, subjects: &Subjects, c: &BusConfig) -> Config {
    let (retention, discard, max_age) = match name {
        // What waits here ends with a word to its client (`run::expiry`), and never by the broker's clock.
        StreamName::Jobs | StreamName::Line => (RetentionPolicy::WorkQueue, DiscardPolicy::New, Duration::ZERO),
        StreamName::Decode => (RetentionPolicy::WorkQueue, DiscardPolicy::New, MAX_AGE),
        StreamName::Frames | StreamName::Audio | StreamName::Features => {
            (RetentionPolicy::WorkQueue, DiscardPolicy::New, MAX_AGE)
        }
        StreamName::Tokens => (RetentionPolicy::Limits, DiscardPolicy::New, MAX_AGE),
        // A job's events go some time after its end, see `run::expiry`; by the broker's clock those of a job that waits
        // for long would go before it ends.
        StreamName::Events => (RetentionPolicy::Limits, DiscardPolicy::Old, Duration::ZERO),
        StreamName::Dead => (RetentionPolicy::Limits, DiscardPolicy::Old, 7 * MAX_AGE),
        StreamName::Capacity => (RetentionPolicy::Limits, DiscardPolicy::Old, Duration::ZERO),
    };
    // Once its events are gone an id may be used again: no message of the new job may pass for one of the old one.
    let duplicate_window = DUPLICATE_WINDOW.min(Duration::from_secs(c.event_age_s.max(1)));
    Config {
        name: name.on(subjects),
        subjects: name.subjects(subjects),
        retention,
        discard,
        max_bytes: stream_bytes(name, c),
        max_age,
        duplicate_window,
        max_messages_per_subject: if name == StreamName::Capacity { 1 } else { -1 },
        storage: match storage(name, c) {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        num_replicas: replicas(name, c),
        ..Default::default()
    }
}

/// What of a stream that exists is otherwise than it is wanted, where that matters: a sentence each, with both values and the
/// command that changes it.
pub(super) fn differences(found: &Config, wanted: &Config) -> Vec<String> {
    let on = &wanted.name;
    let change = |flag: String| format!("change it with `nats stream edit {on} {flag}`");
    let mut told = Vec::new();
    if found.num_replicas != wanted.num_replicas {
        let meaning =
            if found.num_replicas < wanted.num_replicas { "it is lost with fewer servers" } else { "more than asked" };
        let change = change(format!("--replicas {}", wanted.num_replicas));
        told.push(format!(
            "it is held by {} server(s) and bus.replicas makes it {} ({meaning}): {change}",
            found.num_replicas, wanted.num_replicas
        ));
    }
    if !found.max_age.is_zero() && (wanted.max_age.is_zero() || found.max_age < wanted.max_age) {
        let age = |age: Duration| if age.is_zero() { "no age".to_owned() } else { format!("{} s", age.as_secs()) };
        let change = change(format!("--max-age {}s", wanted.max_age.as_secs()));
        told.push(format!(
            "it drops messages after {} that are needed for {}: {change}",
            age(found.max_age),
            if wanted.max_age.is_zero() { "any time".to_owned() } else { age(wanted.max_age) }
        ));
    }
    if found.storage != wanted.storage {
        let place = |storage: StorageType| if storage == StorageType::Memory { "memory" } else { "files" };
        told.push(format!(
            "it is kept in {} and bus.data_storage asks for {}: when no job is in work delete it (`nats stream rm {on}`), and \
             stage-llm makes it anew within seconds",
            place(found.storage),
            place(wanted.storage)
        ));
    }
    if found.max_bytes > 0 && found.max_bytes < wanted.max_bytes {
        let shown = |bytes: i64| Bytes(bytes.max(0).unsigned_abs());
        let change = change(format!("--max-bytes {}", wanted.max_bytes));
        told.push(format!("it holds {} at most, not {}: {change}", shown(found.max_bytes), shown(wanted.max_bytes)));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: StreamName, config: &BusConfig) -> Config {
        stream_config(name, &Subjects::new("vidi.v1"), config)
    }

    #[test]
    fn what_a_client_was_told_is_held_by_several_servers_and_what_is_made_again_by_one() {
        let config = BusConfig { replicas: 3, ..BusConfig::default() };
        let several: Vec<String> = StreamName::ALL
            .into_iter()
            .filter(|&name| made(name, &config).num_replicas == 3)
            .map(|name| name.on(&Subjects::new("vidi.v1")))
            .collect();
        assert_eq!(several, ["VIDI_JOBS", "VIDI_LINE", "VIDI_EVENTS", "VIDI_DEAD", "VIDI_ROOM"]);
        assert!(StreamName::ALL.into_iter().all(|name| made(name, &BusConfig::default()).num_replicas == 1));
    }

    #[test]
    fn memory_holds_what_is_made_again_and_nothing_else() {
        let config = BusConfig { data_storage: Storage::Memory, ..BusConfig::default() };
        let in_memory = |config: &BusConfig| -> Vec<String> {
            let of = StreamName::ALL.into_iter().map(|name| made(name, config));
            of.filter(|stream| stream.storage == StorageType::Memory).map(|stream| stream.name).collect()
        };
        assert_eq!(in_memory(&config), ["VIDI_FRAMES", "VIDI_AUDIO", "VIDI_FEATURES", "VIDI_TOKENS"]);
        assert!(in_memory(&BusConfig::default()).is_empty());
    }

    #[test]
    fn a_stream_with_other_settings_is_told_with_both_values_and_the_command_that_changes_it() {
        let one = BusConfig::default();
        let three = BusConfig { replicas: 3, ..BusConfig::default() };
        let told = differences(&made(StreamName::Jobs, &one), &made(StreamName::Jobs, &three));
        assert!(
            matches!(told.as_slice(), [text] if text.contains("by 1 server(s) and bus.replicas makes it 3")
            && text.contains("`nats stream edit VIDI_JOBS --replicas 3`")),
            "{told:?}"
        );
        let told = differences(&made(StreamName::Events, &three), &made(StreamName::Events, &one));
        assert!(told.len() == 1 && told[0].contains("--replicas 1`"), "{told:?}");
        let small = BusConfig { token_bytes: 1 << 30, ..BusConfig::default() };
        let told = differences(&made(StreamName::Tokens, &small), &made(StreamName::Tokens, &one));
        assert!(told.len() == 1 && told[0].contains("1.00 GiB at most, not 4.00 GiB"), "{told:?}");
        assert!(told[0].contains("`nats stream edit VIDI_TOKENS --max-bytes 4294967296`"), "{told:?}");
        let memory = BusConfig { data_storage: Storage::Memory, ..BusConfig::default() };
        let told = differences(&made(StreamName::Tokens, &one), &made(StreamName::Tokens, &memory));
        assert!(told.len() == 1 && told[0].contains("in files and bus.data_storage asks for memory"), "{told:?}");
        assert!(told[0].contains("`nats stream rm VIDI_TOKENS`"), "{told:?}");
        // A larger one does no harm.
        assert!(differences(&made(StreamName::Tokens, &one), &made(StreamName::Tokens, &small)).is_empty());
        let aged = Config { max_age: Duration::from_secs(60), ..made(StreamName::Jobs, &one) };
        let told = differences(&aged, &made(StreamName::Jobs, &one));
        assert!(told.len() == 1 && told[0].contains("after 60 s") && told[0].contains("--max-age 0s`"), "{told:?}");
    }
}
