//! A pipeline of waiting stages: a broker, a prefix, and the run loops of as many replicas as were asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use config::BusConfig;
use deploy::client;
use deploy::up::broker::{Broker, Options};
use protocol::error::StageName;
use runtime::bus::{Bus, Role};
use runtime::run::service::{InstanceInfo, Status};
use runtime::run::{self, owner};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::monitor::{Did, LOOK_EVERY, Sample};
use super::owner::Answerer;
use super::pace::Pace;
use super::scenario::Scenario;
use super::stages::{Audio, Decode, Fuse, Vision};

/// Longest time that broker and stages may take to start or to leave.
const SOON: Duration = Duration::from_secs(60);

type Ended = JoinHandle<Result<(), run::Ended>>;

/// A broker that several pipelines may share, watched while they run.
pub struct Watched {
    broker: Arc<Broker>,
    stop: watch::Sender<bool>,
    looks: JoinHandle<anyhow::Result<Vec<Sample>>>,
}

impl Watched {
    /// Starts a broker.
    ///
    /// # Errors
    /// One that does not start.
    pub async fn start(dir: &Path, max_payload: usize) -> anyhow::Result<Self> {
        let options = Options { monitor_port: Some(0), max_payload, ..Options::default() };
        let broker = Arc::new(Broker::start(dir, &options).await?);
        let (stop, looks) = watch_over(&broker);
        Ok(Watched { broker, stop, looks })
    }

    /// Address for clients.
    pub fn url(&self) -> &str {
        self.broker.url()
    }

    /// Begins to count anew.
    pub fn restart(&mut self) {
        self.looks.abort();
        (self.stop, self.looks) = watch_over(&self.broker);
    }

    /// Ends the looks at the broker, and says what it did.
    ///
    /// # Errors
    /// A look that failed.
    pub async fn did(&mut self) -> anyhow::Result<Did> {
        self.stop.send_replace(true);
        Ok(Did::between(&(&mut self.looks).await??))
    }
}

fn watch_over(broker: &Arc<Broker>) -> (watch::Sender<bool>, JoinHandle<anyhow::Result<Vec<Sample>>>) {
    let (stop, mut stopping) = watch::channel(false);
    let broker = broker.clone();
    let looks = tokio::spawn(async move {
        let look = || {
            let broker = broker.clone();
            tokio::task::spawn_blocking(move || Sample::of(&broker))
        };
        let mut looks = vec![look().await??];
        while tokio::time::timeout(LOOK_EVERY, stopping.wait_for(|&stop| stop)).await.is_err() {
            looks.push(look().await??);
        }
        looks.push(look().await??);
        Ok(looks)
    });
    (stop, looks)
}

/// Microseconds of the real clock that the replicas of each stage were busy, and those of the simulation's that they
/// computed.
#[derive(Clone, Debug, Default)]
pub struct Busy(pub BTreeMap<StageName, [u64; 2]>);

/// One pipeline.
pub struct Shard {
    /// A client's way to it.
    pub bus: Bus,
    stop: watch::Sender<bool>,
    replicas: Vec<Ended>,
    computed: BTreeMap<StageName, Arc<AtomicU64>>,
}

impl Shard {
    /// Starts the stages of a scenario on a broker, under a prefix.
    ///
    /// # Errors
    /// Stages that do not come up.
    pub async fn start(scenario: &Scenario, url: &str, prefix: &str) -> anyhow::Result<Self> {
        let config = BusConfig {
            url: url.into(),
            prefix: prefix.to_owned(),
            message_bytes: scenario.message_bytes,
            token_bytes: scenario.token_bytes,
            ..BusConfig::default()
        };
        let bus = Bus::connect(&config, Role::Operator, SOON).await?;
        bus.ensure_streams().await?;
        let (stop, _) = watch::channel(false);
        let computed = StageName::ALL.iter().map(|&stage| (stage, Arc::default())).collect();
        let mut shard = Shard { bus, stop, replicas: Vec::new(), computed };
        for (stage, n) in scenario.replicas() {
            for _ in 0..n {
                shard.replica(scenario, &config, stage).await?;
            }
        }
        let until = Instant::now() + SOON;
        for (stage, n) in scenario.replicas() {
            while client::status(&shard.bus, stage).await?.len() < n {
                ensure!(Instant::now() < until, "{n} replicas of stage-{stage} are not ready after {SOON:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(shard)
    }

    async fn replica(&mut self, scenario: &Scenario, config: &BusConfig, stage: StageName) -> anyhow::Result<()> {
        let bus = Bus::connect(config, Role::Stage(stage), SOON).await?;
        let computed = self.computed.get(&stage).context("an unknown stage")?.clone();
        let (pace, times) = (Pace::new(scenario.speed, computed), scenario.times.clone());
        let (stopping, info) = (self.stop.subscribe(), InstanceInfo::default());
        self.replicas.push(match stage {
            StageName::Decode => {
                let stage = Decode::new(scenario.video, scenario.footage, scenario.batch_frames, pace);
                tokio::spawn(run::run(bus, stage, info, stopping))
            }
            StageName::Vision => tokio::spawn(run::run(bus, Vision::new(times, pace), info, stopping)),
            StageName::Audio => tokio::spawn(run::run(bus, Audio::new(times, pace), info, stopping)),
            StageName::Fuse => tokio::spawn(run::run(bus, Fuse::new(times, pace), info, stopping)),
            StageName::Llm => tokio::spawn(owner::run(bus, Answerer::new(times, pace), info, stopping)),
        });
        Ok(())
    }

    /// Status of all replicas.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn status(&self) -> anyhow::Result<Vec<Status>> {
        let mut all = Vec::new();
        for stage in StageName::ALL {
            all.extend(client::status(&self.bus, stage).await?);
        }
        Ok(all)
    }

    /// How busy each stage was from its start on.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn busy(&self) -> anyhow::Result<Busy> {
        let mut busy = Busy::default();
        for status in self.status().await? {
            busy.0.entry(status.stage).or_default()[0] += status.busy_us;
        }
        for (stage, computed) in &self.computed {
            busy.0.entry(*stage).or_default()[1] = computed.load(Ordering::Relaxed);
        }
        Ok(busy)
    }

    /// Drains all replicas.
    ///
    /// # Errors
    /// One that does not leave, or ended with an error.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        for replica in self.replicas {
            tokio::time::timeout(SOON, replica).await.context("a replica does not leave")???;
        }
        Ok(())
    }
}
