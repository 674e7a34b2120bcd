//! Broker and stages together, for as long as the process that started them needs them.

use std::path::Path;
use std::time::{Duration, Instant};

use config::Config;
use protocol::error::StageName;
use runtime::bus::{Bus, BusError, Role};
use runtime::process::{Exit, Fatal};

use super::broker::{self, Broker};
use super::budgets;
use super::desired::Desired;
use super::idle::Idle;
use super::in_process::InProcess;
use super::merged::Merged;
use super::mps::choice;
use super::mps::home::Home;
use super::mps::service::Mps;
use super::replicas::devices;
use super::room::Room;
use super::supervisor::{Logs, Supervisor};
use crate::client;

/// All stages are ready within this time, a large checkpoint on a slow disk included.
const READY_WAIT: Duration = Duration::from_secs(600);

/// More bytes than any disk has, and than streams reserve.
const UNLIMITED: u64 = 1 << 50;

/// Which processes the stages run in.
#[derive(Clone, Debug)]
pub enum Layout {
    /// Each replica of each stage in a process of its own, with its log there.
    Processes(Logs),
    /// All stages in the process that starts them.
    OneProcess,
}

enum Stages {
    /// With what loads and unloads them.
    Processes(Supervisor, Idle),
    OneProcess(InProcess),
}

impl Stages {
    async fn fatal(&mut self) -> Fatal {
        match self {
            Stages::Processes(s, _) => s.fatal().await,
            Stages::OneProcess(s) => s.fatal().await,
        }
    }
}

/// A running broker, unless the configuration names one, and its running stages.
pub struct Pipeline {
    stages: Stages,
    /// What the stages read when they start, and when they start again.
    merged: Merged,
    mps: Option<Mps>,
    broker: Option<Broker>,
    bus: Bus,
    /// What of the streams had to be made smaller.
    fitted: Option<String>,
}

impl Pipeline {
    /// Starts what is missing: a broker if `config` names none, and the stages. Files go below `dir`, which is this
    /// pipeline's alone.
    ///
    /// # Errors
    /// What does not start, and why.
    pub async fn start(
        config: &Config,
        dir: &Path,
        replicas: &[(StageName, usize)],
        layout: &Layout,
        broker: &broker::Options,
    ) -> Result<Self, Fatal> {
        let other = |e: anyhow::Error| Fatal(Exit::Broker, format!("{e:#}"));
        let mut config = config.clone();
        check_one_process(&config, replicas, layout)?;
        budgets::divide(&mut config, replicas)?;
        let mps = choice::choose(&config, replicas, matches!(layout, Layout::OneProcess))?;
        std::fs::create_dir_all(dir).map_err(|e| other(anyhow::anyhow!("{}: {e}", dir.display())))?;
        let mps = share_gpu(mps, dir).await?;
        let (mut own, mut fitted) = (None, None);
        if config.bus.url.is_empty() {
            let (home, store) = (dir.join("broker"), dir.join("broker").join(broker::STORE));
            let room = Room::of(dir, &store).map_err(other)?;
            fitted = room.fit(&mut config.bus).map_err(|text| Fatal(Exit::Broker, text))?;
            if let Some(smaller) = &fitted {
                tracing::warn!("{smaller}");
            }
            // The streams fit the room: the server's own limit would refuse those that are there when others fill the disk.
            let limit = broker.max_file_store.or(Some(UNLIMITED));
            let options = broker::Options { max_file_store: limit, ..broker.clone() };
            let broker = Broker::start(&home, &options).await.map_err(other)?;
            config.bus.url = broker.url().into();
            own = Some(broker);
        }
        let merged = Merged::write(&config, replicas, dir).map_err(other)?;
        let connect = async || {
            let bus = Bus::connect(&config.bus, Role::Operator, Duration::from_secs(10)).await?;
            bus.ensure_streams().await?;
            Ok::<_, BusError>(bus)
        };
        let (stages, bus) = match layout {
            Layout::Processes(logs) => {
                // Before the broker is asked: the stages load while it makes the streams.
                let supervisor = Supervisor::start(merged.processes(), logs, own.is_some(), mps.as_ref());
                let after = config.up.idle_unload_s;
                let after = (after > 0.0).then(|| Duration::from_secs_f64(after));
                let connected = async {
                    let bus = connect().await?;
                    let idle = Idle::start(&bus, supervisor.desired(), after).await?;
                    Ok::<_, BusError>((bus, idle))
                };
                match connected.await {
                    Ok((bus, idle)) => (Stages::Processes(supervisor, idle), bus),
                    Err(e) => {
                        supervisor.kill().await;
                        stop_sharing(mps).await;
                        return Err(e.into());
                    }
                }
            }
            Layout::OneProcess => {
                let stages = InProcess::start(&config, replicas);
                (Stages::OneProcess(stages), connect().await?)
            }
        };
        Ok(Pipeline { stages, merged, mps, broker: own, bus, fitted })
    }

    /// A connection to its broker in the operator's role.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// What loads and unloads its stages; none where they have no processes of their own.
    pub fn desired(&self) -> Option<Desired> {
        match &self.stages {
            Stages::Processes(supervisor, _) => Some(supervisor.desired()),
            Stages::OneProcess(_) => None,
        }
    }

    /// What of its streams had to be made smaller than configured, and why.
    pub fn fitted(&self) -> Option<&str> {
        self.fitted.as_deref()
    }

    /// What a user is told of the daemon by which its stages share a GPU; none where they do not.
    pub fn mps(&self) -> Option<&str> {
        self.mps.as_ref().map(Mps::said)
    }

    /// Waits until every stage has its model loaded and listens.
    ///
    /// # Errors
    /// The stage that cannot start, in its own words.
    pub async fn ready(&mut self) -> Result<(), Fatal> {
        let until = Instant::now() + READY_WAIT;
        let bus = self.bus.clone();
        let wait = async {
            loop {
                let there = client::ready(&bus).await.unwrap_or_default();
                let missing: Vec<&str> =
                    StageName::ALL.iter().filter(|s| !there.contains(s)).map(|s| s.as_str()).collect();
                if missing.is_empty() {
                    return Ok(());
                }
                if Instant::now() > until {
                    let text = format!("stages not ready after {READY_WAIT:?}: {}", missing.join(", "));
                    return Err(Fatal(Exit::Other, text));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            outcome = wait => outcome,
            fatal = self.stages.fatal() => Err(fatal),
        }
    }

    /// Waits for a failure that the pipeline cannot recover from.
    pub async fn lost(&mut self) -> Fatal {
        match &mut self.broker {
            None => self.stages.fatal().await,
            Some(broker) => tokio::select! {
                fatal = self.stages.fatal() => fatal,
                text = broker.ended() => Fatal(Exit::Broker, text),
            },
        }
    }

    /// Drains the stages, then stops what they use.
    pub async fn stop(self) {
        match self.stages {
            Stages::Processes(s, idle) => {
                drop(idle);
                s.drain().await;
            }
            Stages::OneProcess(s) => s.drain().await,
        }
        stop_sharing(self.mps).await;
        drop(self.merged);
        drop(self.broker);
    }
}

/// Starts the daemon by which stages share a GPU, if one was chosen, with its files below `dir`.
async fn share_gpu(choice: Option<choice::Choice>, dir: &Path) -> Result<Option<Mps>, Fatal> {
    let Some(choice) = choice else { return Ok(None) };
    let home = Home::below(dir).map_err(|e| Fatal(Exit::Usage, format!("{e:#}")))?;
    match Mps::start(&choice, &home).await {
        Ok(mps) => Ok(Some(mps)),
        Err(e) => Err(Fatal(Exit::Other, format!("MPS does not start: {e:#}; --mps (up.mps) can be left out"))),
    }
}

/// Ends that daemon, whose clients have ended.
async fn stop_sharing(mps: Option<Mps>) {
    if let Some(mps) = mps {
        mps.stop().await;
    }
}

/// Refuses stages on several devices in one process: it has one memory pool, and one gauge of what it holds.
fn check_one_process(config: &Config, replicas: &[(StageName, usize)], layout: &Layout) -> Result<(), Fatal> {
    match (layout, devices(config, replicas).as_slice()) {
        (Layout::OneProcess, [one, other, ..]) => {
            let text = format!(
                "one process computes on one device, and the placement has {one} and {other}: leave --one-process out, or place all stages on one device"
            );
            Err(Fatal(Exit::Usage, text))
        }
        _ => Ok(()),
    }
}
