//! Requests to a pipeline that runs: cancel, status, top, load, unload.

use std::io::IsTerminal;
use std::time::Duration;

use config::Config;
use deploy::up::note;
use deploy::{client, top};
use protocol::control::Verb;
use protocol::error::StageName;
use protocol::message::JobId;
use runtime::answer;
use runtime::bus::{Bus, Role};
use runtime::process::{Exit, Fatal, on_signal};

/// Error of a request that the broker did not fulfil.
pub fn broker_trouble(e: anyhow::Error) -> Fatal {
    Fatal(Exit::Broker, format!("{e:#}"))
}

/// Connection to the pipeline that runs: on the configured broker, or under `vidi up` on this host.
///
/// # Errors
/// When there is none, or the broker does not let `role` in.
pub async fn connect(config: &Config, role: Role) -> Result<Bus, Fatal> {
    if !config.bus.url.is_empty() {
        return Ok(Bus::connect(&config.bus, role, Duration::from_secs(2)).await?);
    }
    note::running(config, role).await?.ok_or_else(|| {
        Fatal(Exit::Broker, "no pipeline runs here: start one with `vidi up`, or name its broker in bus.url".to_owned())
    })
}

/// `vidi cancel`: prints which instances stopped work.
///
/// # Errors
/// For what is no job's id, and when nobody answers.
pub async fn cancel(config: &Config, job: String) -> Result<(), Fatal> {
    let job = JobId::new(job).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    let replies = client::cancel(&connect(config, Role::Client).await?, &job).await.map_err(broker_trouble)?;
    for reply in &replies {
        let what = if reply.stopped { "stopped" } else { "had none of it in flight" };
        answer!("{}: {what}", reply.instance)?;
    }
    if replies.is_empty() {
        return Err(Fatal(Exit::Other, "no stage answered".to_owned()));
    }
    Ok(())
}

/// `vidi load` and `vidi unload`.
///
/// # Errors
/// When no supervisor is there, or it cannot do it.
pub async fn load(config: &Config, verb: Verb, stage: Option<StageName>) -> Result<(), Fatal> {
    let reply = client::load(&connect(config, Role::Operator).await?, verb, stage).await.map_err(broker_trouble)?;
    if let Some(error) = reply.error {
        return Err(Fatal(Exit::Usage, error));
    }
    let stages: Vec<&str> = reply.stages.iter().map(|s| s.as_str()).collect();
    match (verb, stages.is_empty()) {
        (Verb::Load, true) => answer!("nothing was unloaded"),
        (Verb::Load, false) => answer!("starting {} ({} processes)", stages.join(", "), reply.processes),
        (_, true) => answer!("nothing was loaded"),
        (_, false) => answer!("ended {} ({} processes) in {} ms", stages.join(", "), reply.processes, reply.ms),
    }?;
    Ok(())
}

/// `vidi status`: a line, or with `json` an object, for each instance of each stage.
///
/// # Errors
/// When no broker is there.
pub async fn status(config: &Config, json: bool) -> Result<(), Fatal> {
    let bus = connect(config, Role::Client).await?;
    if !json {
        answer!(
            "{:<24} {:>7} {:>10} {:>10} {:>10} {:>9} {:>7} {:>6} {:>4} {:>6}",
            "instance",
            "device",
            "used MiB",
            "peak MiB",
            "budget",
            "messages",
            "failed",
            "again",
            "now",
            "queue"
        )?;
    }
    for s in client::statuses(&bus).await.map_err(broker_trouble)? {
        if json {
            answer!("{}", serde_json::json!(s))?;
            continue;
        }
        let mib = |b: u64| format!("{:.1}", b as f64 / f64::from(1 << 20));
        let budget = if s.budget_bytes == 0 { "none".to_owned() } else { mib(s.budget_bytes) };
        answer!(
            "{:<24} {:>7} {:>10} {:>10} {:>10} {:>9} {:>7} {:>6} {:>4} {:>6}",
            s.instance,
            s.device,
            mib(s.used_bytes),
            mib(s.peak_bytes),
            budget,
            s.processed,
            s.failed,
            s.redelivered,
            s.in_flight,
            s.queue_depth
        )?;
    }
    Ok(())
}

/// `vidi top`: the same, on the whole terminal and again every second, or with `once` as text.
///
/// # Errors
/// When no broker is there, or standard output is no terminal and `once` was not asked for.
pub async fn top(config: &Config, once: bool) -> Result<(), Fatal> {
    #[expect(clippy::disallowed_methods, reason = "it is asked what it is, and nothing written")]
    let is_terminal = std::io::stdout().is_terminal();
    if !once && !is_terminal {
        let text = "vidi top draws on a terminal, and standard output is none: --once prints it as text, `vidi status --json` for programs";
        return Err(Fatal(Exit::Usage, text.to_owned()));
    }
    let bus = connect(config, Role::Client).await?;
    if once {
        answer!("{}", top::once(&bus).await.map_err(broker_trouble)?)?;
        return Ok(());
    }
    let failed = |e: std::io::Error| Fatal(Exit::Other, format!("the terminal cannot be drawn on: {e}"));
    top::run(&bus, on_signal()).await.map_err(failed)
}
