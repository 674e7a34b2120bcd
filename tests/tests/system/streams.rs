//! Tests of streams: several may make them at the same time, and one that is gone is made again.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use async_nats::jetstream;
use deploy::up::broker::{Broker, Options};
use futures::future::{join_all, try_join_all};
use protocol::event::Event;
use protocol::message::JobId;
use runtime::bus::events::EventLog;
use runtime::bus::{Bus, Role, Stored, headers};
use runtime::subject::StreamName;
use tests::harness::{Setup, brokers};
use tests::shipped::Shipped;

/// Longest time until a broker is reached.
const SAYS: Duration = Duration::from_secs(30);
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
        makers.push(Bus::connect(&config, Role::Operator, SAYS).await?);
    }
    let js = jetstream::new(makers[0].client().clone());
    // The old one is waited for two seconds a round, see `Bus::ensure_streams`.
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

/// Whoever hears of a subject keeps the broker from saying that no stream keeps it: a publish is not refused then but never
/// answered. A client who follows its job does so, and who records a pipeline does so on all subjects.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_made_again_though_somebody_hears_of_its_subjects() -> anyhow::Result<()> {
    with_each(published_behind_a_delete).await
}

async fn published_behind_a_delete(program: Option<PathBuf>) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(dir.path(), &Options { program, ..Options::default() }).await?;
    let bus = Bus::connect(&Setup::default().bus(broker.url())?, Role::Operator, SAYS).await?;
    bus.ensure_streams().await?;
    let js = jetstream::new(bus.client().clone());
    let _hears_of_all = bus.client().subscribe(format!("{}.>", bus.config().prefix)).await?;

    let job = JobId::new("followed")?;
    let mut log = EventLog::open(&bus, &job).await;
    log.append(Event::Accepted {}).await.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let deleted = SystemTime::now();
    for stream in [StreamName::Events, StreamName::Tokens] {
        js.delete_stream(stream.on(bus.subjects())).await?;
    }
    let subject = bus.subjects().tokens(&job);
    let with = headers(&job);
    let both = async {
        tokio::join!(
            bus.store(subject, "one", &with, "body".into(), std::future::pending()),
            log.append(Event::Queued { rank: 0 })
        )
    };
    let (stored, appended) = tokio::time::timeout(STORED_WAIT, both).await.context("not stored")?;
    ensure!(matches!(stored, Ok(Stored::Now)), "{stored:?}");
    ensure!(appended.is_ok(), "{appended:?}");
    for stream in [StreamName::Events, StreamName::Tokens] {
        let name = stream.on(bus.subjects());
        let info = js.get_stream(&name).await?.cached_info().clone();
        ensure!(info.state.messages == 1, "{name}: {:?}", info.state);
        let after = SystemTime::from(info.created).duration_since(deleted)?;
        ensure!(after >= REMOVED_WAIT, "{name} was made {after:?} after it was deleted");
    }
    Ok(())
}
