//! Tests of streams: several may make them at the same time, and one that is gone is made again.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use async_nats::jetstream;
use deploy::up::broker::{Broker, Options};
use futures::future::{join_all, try_join_all};
use protocol::event::Event;
use protocol::message::JobId;
use runtime::bus::events::EventLog;
use runtime::bus::{Bus, Role, Stored, headers};
use runtime::subject::StreamName;
use tempfile::TempDir;
use tests::harness::{Setup, brokers};
use tests::shipped::Shipped;

/// Longest time until a broker is reached.
const REACHED_WAIT: Duration = Duration::from_secs(30);
/// Longest time until a message is stored whose stream was deleted: a try without an answer takes five seconds.
const STORED_WAIT: Duration = Duration::from_secs(20);
/// Time that a broker has to remove the files of a deleted stream before it is made again.
const REMOVED_WAIT: Duration = Duration::from_secs(1);

/// Does something with each broker, all at the same time: most of it is waiting.
async fn with_each<F: Future<Output = anyhow::Result<()>>>(run: impl Fn(Option<PathBuf>) -> F) -> anyhow::Result<()> {
    let each =
        brokers().into_iter().map(async |program| run(program.clone()).await.with_context(|| format!("{program:?}")));
    try_join_all(each).await.map(drop)
}

/// The shipped configuration has capacity for the streams once, not twice.
#[tokio::test(flavor = "multi_thread")]
async fn several_may_make_the_streams_at_the_same_time_though_there_is_capacity_for_them_only_once()
-> anyhow::Result<()> {
    with_each(made_by_several).await
}

async fn made_by_several(program: Option<PathBuf>) -> anyhow::Result<()> {
    let shipped = Shipped::new()?;
    let broker = shipped.broker(program.as_deref()).await?;
    let config = shipped.bus(&broker)?;
    let mut makers = Vec::new();
    for _ in 0..4 {
        makers.push(Bus::connect(&config, Role::Operator, REACHED_WAIT).await?);
    }
    let js = jetstream::new(makers[0].client().clone());
    // The old one is waited for two seconds a round (`set_up` in bus/queue.rs).
    let rounds = if program.is_some() { 8 } else { 20 };
    for round in 0..rounds {
        let made = join_all(makers.iter().map(Bus::ensure_streams)).await;
        made.into_iter().collect::<Result<Vec<_>, _>>().with_context(|| format!("round {round}"))?;
        for name in StreamName::ALL {
            js.delete_stream(name.on(makers[0].subjects())).await?;
        }
    }
    Ok(())
}

/// A stream that is made while the broker still removes the files of the one before loses them too.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_not_made_again_before_the_broker_has_removed_its_files() -> anyhow::Result<()> {
    with_each(async |program| {
        let streams = Streams::start(program).await?;
        let deleted = streams.delete().await?;
        // Refused at once, as nobody hears of it.
        streams.store().await?;
        let made = streams.stored().await?;
        let after = made.duration_since(deleted)?;
        ensure!(after >= REMOVED_WAIT, "made {after:?} after it was deleted");
        Ok(())
    })
    .await
}

/// Whoever hears of a subject keeps the broker from saying that no stream keeps it: a publish is not refused then but never
/// answered. A client who follows its job does so, and who records a pipeline does so on all subjects.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_made_again_though_somebody_hears_of_its_subjects() -> anyhow::Result<()> {
    with_each(async |program| {
        let streams = Streams::start(program).await?;
        let bus = &streams.bus;
        let _hears_of_all = bus.client().subscribe(format!("{}.>", bus.config().prefix)).await?;
        let mut log = EventLog::open(bus, &streams.job).await;
        log.append(Event::Accepted {}).await.map_err(|refused| anyhow!("{refused:?}"))?;
        streams.delete().await?;
        jetstream::new(bus.client().clone()).delete_stream(StreamName::Events.on(bus.subjects())).await?;
        // Both ways to publish.
        let appended = tokio::time::timeout(STORED_WAIT, log.append(Event::Queued { rank: 0 }));
        let (stored, appended) = tokio::join!(streams.store(), appended);
        stored?;
        appended.context("not appended")?.map_err(|refused| anyhow!("{refused:?}"))?;
        streams.stored().await.map(drop)
    })
    .await
}

/// A broker with all streams, and one who may make them.
struct Streams {
    bus: Bus,
    job: JobId,
    _broker: Broker,
    _dir: TempDir,
}

impl Streams {
    async fn start(program: Option<PathBuf>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = Broker::start(dir.path(), &Options { program, ..Options::default() }).await?;
        let bus = Bus::connect(&Setup::default().bus(broker.url())?, Role::Operator, REACHED_WAIT).await?;
        bus.ensure_streams().await?;
        Ok(Streams { bus, job: JobId::new("followed")?, _broker: broker, _dir: dir })
    }

    /// Deletes the stream of tokens; when.
    async fn delete(&self) -> anyhow::Result<SystemTime> {
        let deleted = SystemTime::now();
        jetstream::new(self.bus.client().clone()).delete_stream(StreamName::Tokens.on(self.bus.subjects())).await?;
        Ok(deleted)
    }

    /// Stores a message of tokens.
    async fn store(&self) -> anyhow::Result<()> {
        let (subject, with) = (self.bus.subjects().tokens(&self.job), headers(&self.job));
        let stored = self.bus.store(subject, "one", &with, "body".into(), std::future::pending());
        let stored = tokio::time::timeout(STORED_WAIT, stored).await.context("not stored")?;
        ensure!(matches!(stored, Ok(Stored::Now)), "{stored:?}");
        Ok(())
    }

    /// Checks that the stream of tokens holds one message; when the stream was made.
    async fn stored(&self) -> anyhow::Result<SystemTime> {
        let js = jetstream::new(self.bus.client().clone());
        let info = js.get_stream(StreamName::Tokens.on(self.bus.subjects())).await?.cached_info().clone();
        ensure!(info.state.messages == 1, "{:?}", info.state);
        Ok(info.created.into())
    }
}
