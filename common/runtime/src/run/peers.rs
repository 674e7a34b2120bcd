//! Whom an instance joins: all instances under one prefix speak one version of the protocol and compute with one
//! checkpoint, or whoever comes to them is refused by name.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::service::Info;
use bytes::Bytes;
use futures::StreamExt;

use super::checkpoint::Checkpoint;
use crate::bus::{Bus, BusError, BusErrorKind};
use protocol::error::StageName;
use protocol::wire;

/// Question to every service, whatever its name.
const WHO_IS_THERE: &str = "$SRV.INFO";
/// Time within which the first instance answers.
const FIRST: Duration = Duration::from_millis(500);
/// Time without an answer after which all have answered.
const QUIET: Duration = Duration::from_millis(150);
/// Metadata with the fingerprint of an instance's checkpoint.
pub const FINGERPRINT: &str = "fingerprint";

/// Checks that an instance may join those that are there.
///
/// # Errors
/// [`BusErrorKind::Mixed`] with the first instance that differs, and in what; [`BusErrorKind::JetStream`] when the broker
/// cannot be asked.
pub async fn check(bus: &Bus, own: &Checkpoint) -> Result<(), BusError> {
    for info in services(bus).await? {
        compare(bus, own, &info)?;
    }
    Ok(())
}

/// Instances of a stage under the same prefix, this one included.
///
/// # Errors
/// [`BusErrorKind::JetStream`] when the broker cannot be asked.
pub async fn instances(bus: &Bus, stage: StageName) -> Result<Vec<String>, BusError> {
    let mut found = services(bus).await?;
    let of = |info: &Info, key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    found.retain(|info| of(info, "prefix") == bus.subjects().prefix() && of(info, "stage") == stage.as_str());
    Ok(found.iter().map(|info| of(info, "instance")).collect())
}

/// All services that answer.
async fn services(bus: &Bus) -> Result<Vec<Info>, BusError> {
    let failed = |e: String| BusError::new(BusErrorKind::JetStream, format!("{WHO_IS_THERE}: {e}"));
    let inbox = bus.client().new_inbox();
    let mut replies = bus.client().subscribe(inbox.clone()).await.map_err(|e| failed(e.to_string()))?;
    let asked = bus.client().publish_with_reply(WHO_IS_THERE, inbox, Bytes::new()).await;
    asked.map_err(|e| failed(e.to_string()))?;
    let mut found = Vec::new();
    let mut patience = FIRST;
    while let Ok(Some(reply)) = tokio::time::timeout(patience, replies.next()).await {
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            break;
        }
        patience = QUIET;
        found.extend(serde_json::from_slice::<Info>(&reply.payload));
    }
    Ok(found)
}

/// Compares an instance with one that is there.
fn compare(bus: &Bus, own: &Checkpoint, peer: &Info) -> Result<(), BusError> {
    let of = |key: &str| peer.metadata.get(key).map_or("", String::as_str);
    let (prefix, own_wire) = (bus.subjects().prefix(), wire::VERSION.to_string());
    // Other services may be there, and other pipelines.
    if of("prefix") != prefix || of("instance").is_empty() {
        return Ok(());
    }
    let theirs = Checkpoint { name: of("model").to_owned(), fingerprint: of(FINGERPRINT).to_owned() };
    let (differs, their, ours) = match () {
        () if of("wire") != own_wire => ("speaks protocol version", of("wire").to_owned(), own_wire),
        () if !own.agrees(&theirs) => ("computes with checkpoint", theirs.to_string(), own.to_string()),
        () => return Ok(()),
    };
    let text = format!(
        "{} does not join the pipeline {prefix}: {} there {differs} {their}, and this one {ours}; stop the others, start \
         this one as they are, or give it a bus.prefix of its own",
        bus.instance(),
        of("instance")
    );
    Err(BusError::new(BusErrorKind::Mixed, text))
}
