//! A pipeline to ask: one that runs already, or one of our own for as long as it is needed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use config::Config;
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use runtime::bus::{Bus, BusError, BusErrorKind};
use runtime::process::{Exit, Fatal};
use serde::{Deserialize, Serialize};

use crate::client;
use crate::model::plan::{Plan, Replicas};
use crate::up::broker::{self, Broker};
use crate::up::idle::Idle;
use crate::up::in_process::InProcess;
use crate::up::supervisor::{Logs, Supervisor};

/// All stages are ready within this time, a large checkpoint on a slow disk included.
const READY_WAIT: Duration = Duration::from_secs(600);

/// Where `vidi up` says what it runs, for `vidi ask` to find.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpFile {
    /// The supervisor's process.
    pub pid: u32,
    /// The broker.
    pub url: String,
    /// First part of every subject.
    pub prefix: String,
}

/// Directory for what outlives a process: `VIDI_STATE`, else `vidi` below the user's state directory.
pub fn state_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("VIDI_STATE")
        .or_else(|| var("XDG_STATE_HOME").map(|d| d.join("vidi")))
        .or_else(|| var("HOME").map(|d| d.join(".local/state/vidi")))
        .unwrap_or_else(|| std::env::temp_dir().join("vidi"))
}

/// The running pipeline that `vidi up` left a note of, if it is still there.
///
/// # Errors
/// When its broker refuses this role.
pub async fn running(config: &Config, role: &str) -> Result<Option<Bus>, Fatal> {
    let Some(note) = note().filter(|n| Path::new("/proc").join(n.pid.to_string()).exists()) else { return Ok(None) };
    let mut bus = config.bus.clone();
    (bus.url, bus.prefix) = (note.url, note.prefix);
    match Bus::connect(&bus, role, Duration::from_millis(500)).await {
        Ok(bus) => Ok(Some(bus)),
        Err(e) if e.kind() == BusErrorKind::Credentials => Err(e.into()),
        // Its broker is gone, or not there yet.
        Err(_) => Ok(None),
    }
}

fn note() -> Option<UpFile> {
    serde_json::from_slice(&std::fs::read(state_dir().join("up.json")).ok()?).ok()
}

/// How stages are run.
#[derive(Clone, Debug)]
pub enum Housing {
    /// Each in a process of its own, with its log there.
    Processes(Logs),
    /// All in this one.
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

/// Broker and stages of our own.
pub struct Pipeline {
    stages: Stages,
    broker: Option<Broker>,
    bus: Bus,
}

impl Pipeline {
    /// Starts what is missing: a broker if `config` names none, and the stages. Files go below `dir`.
    ///
    /// # Errors
    /// What does not start, and why.
    pub async fn start(
        config: &Config,
        dir: &Path,
        replicas: &[(StageName, usize)],
        housing: &Housing,
        broker: &broker::Options,
    ) -> Result<Self, Fatal> {
        let other = |e: anyhow::Error| Fatal(Exit::Broker, format!("{e:#}"));
        let mut config = config.clone();
        share_card(&mut config, replicas)?;
        let broker = if config.bus.url.is_empty() {
            let broker = Broker::start(&dir.join("broker"), broker).await.map_err(other)?;
            config.bus.url = broker.url().to_owned();
            Some(broker)
        } else {
            None
        };
        let file = write_config(&config, dir).map_err(other)?;
        let connect = async || {
            let bus = Bus::connect(&config.bus, "operator", Duration::from_secs(10)).await?;
            bus.ensure_streams().await?;
            Ok::<_, BusError>(bus)
        };
        let (stages, bus) = match housing {
            Housing::Processes(logs) => {
                // Before the broker is asked: the stages load while it makes the streams.
                let supervisor = Supervisor::start(&file, replicas, logs);
                let bus = connect().await?;
                let after = config.up.idle_unload_s;
                let after = (after > 0.0).then(|| Duration::from_secs_f64(after));
                let idle = Idle::start(&bus, supervisor.roster(), after).await?;
                (Stages::Processes(supervisor, idle), bus)
            }
            Housing::OneProcess => {
                let stages = InProcess::start(&config, replicas);
                (Stages::OneProcess(stages), connect().await?)
            }
        };
        Ok(Pipeline { stages, broker, bus })
    }

    /// An operator's connection to its broker.
    pub fn bus(&self) -> &Bus {
        &self.bus
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
                    let text = format!("not ready after {READY_WAIT:?}: {}", missing.join(", "));
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

    /// Waits for something that the pipeline cannot recover from.
    pub async fn lost(&mut self) -> Fatal {
        match &mut self.broker {
            None => self.stages.fatal().await,
            Some(broker) => tokio::select! {
                fatal = self.stages.fatal() => fatal,
                text = broker.ended() => Fatal(Exit::Broker, text),
            },
        }
    }

    /// Drains the stages, then stops the broker.
    pub async fn stop(self) {
        match self.stages {
            Stages::Processes(s, idle) => {
                drop(idle);
                s.drain().await;
            }
            Stages::OneProcess(s) => s.drain().await,
        }
        drop(self.broker);
    }
}

/// Divides the card among all processes, where it has a cap and the configuration does not divide it itself.
fn share_card(config: &mut Config, replicas: &Replicas) -> Result<(), Fatal> {
    let Some(card) = config.compute.card_bytes else { return Ok(()) };
    let wrong = |e: model::checkpoint::CheckpointError| Fatal(Exit::Model, e.to_string());
    let model = ModelConfig::configured(&config.model).map_err(wrong)?;
    let plan = Plan::new(config, &model, replicas).map_err(wrong)?;
    if config.budgets.is_empty() {
        let Some(budgets) = plan.budgets() else {
            let text = format!(
                "the stages do not fit the card:\n{plan}\nset llm.weights = \"q8\" or \"q4\", start fewer replicas, or \
                 raise compute.card_bytes"
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        };
        config.budgets.extend(budgets);
    } else {
        let together = plan.budgeted_bytes(&config.budgets);
        if together > card {
            let text = format!(
                "the budgets of all processes come to {}, the card gives {}:\n{plan}\nlower budgets, start fewer \
                 replicas, or raise compute.card_bytes",
                Bytes(together),
                Bytes(card)
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        }
    }
    if plan.llm_processes > 1 {
        // In phases a language model takes the whole card; one of several would take it from the others.
        config.compute.card_bytes = None;
    }
    Ok(())
}

/// The configuration that the stages read, with secrets for nobody else's eyes.
fn write_config(config: &Config, dir: &Path) -> anyhow::Result<PathBuf> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    let path = dir.join("stages.toml");
    let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
    file.write_all(config.to_toml().as_bytes()).with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

/// Tells `vidi ask` of this process.
///
/// # Errors
/// When the note cannot be written, or another `vidi up` runs.
pub fn leave_note(bus: &Bus) -> anyhow::Result<PathBuf> {
    let path = state_dir().join("up.json");
    if let Some(other) = note()
        && other.pid != std::process::id()
        && Path::new("/proc").join(other.pid.to_string()).exists()
    {
        bail!("another `vidi up` runs (process {}); stop it, or set VIDI_STATE to another directory", other.pid);
    }
    let note =
        UpFile { pid: std::process::id(), url: bus.config().url.clone(), prefix: bus.subjects().prefix().to_owned() };
    std::fs::create_dir_all(state_dir())?;
    std::fs::write(&path, serde_json::to_vec(&note)?).with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A demo checkpoint's configuration with a card of so many bytes; the directory lives as long as the test.
    fn on_card(card_bytes: u64) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let mut config = Config::default();
        config.model.dir = dir.path().to_owned();
        config.compute.card_bytes = Some(card_bytes);
        (dir, config)
    }

    fn needs(config: &Config, replicas: &Replicas) -> u64 {
        Plan::new(config, &ModelConfig::default(), replicas).unwrap().bytes()
    }

    #[test]
    fn replicas_that_do_not_fit_the_card_together_are_refused_with_the_figures() {
        let (_dir, mut config) = on_card(u64::MAX);
        let two = [(StageName::Vision, 2)];
        config.compute.card_bytes = Some(needs(&config, &two) - 1);
        assert!(share_card(&mut config.clone(), &[]).is_ok());
        let Fatal(exit, said) = share_card(&mut config.clone(), &two).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("vision") && said.contains("fewer replicas"), "{said}");
        config.compute.card_bytes = Some(needs(&config, &two));
        assert!(share_card(&mut config, &two).is_ok());
    }

    #[test]
    fn budgets_of_all_replicas_together_are_held_against_the_card() {
        let (_dir, mut config) = on_card(100);
        config.budgets =
            [(StageName::Vision, 30), (StageName::Audio, 10), (StageName::Fuse, 10), (StageName::Llm, 50)].into();
        assert!(share_card(&mut config.clone(), &[]).is_ok());
        let Fatal(exit, said) = share_card(&mut config, &[(StageName::Vision, 2)]).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("budgets of all processes"), "{said}");
    }

    #[test]
    fn of_several_language_models_none_is_told_of_a_whole_card() {
        let (_dir, mut config) = on_card(1 << 40);
        let mut shared = config.clone();
        share_card(&mut shared, &[(StageName::Llm, 2)]).unwrap();
        share_card(&mut config, &[]).unwrap();
        assert_eq!((config.compute.card_bytes, shared.compute.card_bytes), (Some(1 << 40), None));
        let llm = |budgets: &BTreeMap<StageName, u64>| budgets[&StageName::Llm];
        assert!(llm(&shared.budgets) < llm(&config.budgets) / 2 + 1);
    }
}
