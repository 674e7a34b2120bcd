//! Pipelines with a gateway: one that tests share, some of their own, and gateways alone.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Weak};

use anyhow::Context;
use demo_video::truth::Truth;
use tests::harness::{Rig, Setup, vidi};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::SECONDS;
use super::client::Client;

/// Capacity of the token stream: several of the tests' videos, and not one of which every picture is looked at.
pub const TOKEN_BYTES: u64 = 12 << 20;

/// Runtime of all tests, which what they share lives in.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime starts"));
/// Pipeline that tests share, while one of them runs.
static SHARED: Mutex<Weak<(Rig, Client)>> = Mutex::const_new(Weak::new());
/// Whoever makes the video of all tests.
static MAKING: Mutex<()> = Mutex::const_new(());

/// Runs a test on the pipeline that is shared by those which leave its processes alone.
pub fn with_pipeline(test: impl AsyncFnOnce(&Rig, &Client) -> anyhow::Result<()>) -> anyhow::Result<()> {
    RUNTIME.block_on(async {
        let pipeline = {
            let mut shared = SHARED.lock().await;
            match shared.upgrade() {
                Some(pipeline) => pipeline,
                None => {
                    let pipeline = Arc::new(own().await?);
                    *shared = Arc::downgrade(&pipeline);
                    pipeline
                }
            }
        };
        test(&pipeline.0, &pipeline.1).await
    })
}

/// Pipeline with the demo model and a gateway, whose address its log says.
pub async fn own() -> anyhow::Result<(Rig, Client)> {
    start(Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() }).await
}

/// Pipeline with a gateway.
pub async fn start(mut setup: Setup) -> anyhow::Result<(Rig, Client)> {
    let set =
        ["http.address=127.0.0.1:0".to_owned(), "http.resume_s=1".to_owned(), format!("bus.token_bytes={TOKEN_BYTES}")];
    setup.set.extend(set);
    let rig = Rig::start(setup).await?;
    let log = rig.log();
    let address =
        log.lines().find_map(|line| line.strip_prefix("gateway: http://")).context("no gateway in the log")?;
    let client = Client { address: address.to_owned(), token: None };
    Ok((rig, client))
}

/// The video that most tests ask about, and its truth; made once for each pipeline.
pub async fn clip(rig: &Rig) -> anyhow::Result<(PathBuf, Truth)> {
    let _one_at_a_time = MAKING.lock().await;
    let video = rig.media().join("5.mp4");
    let truth = video.with_extension("json");
    // The truth is written last.
    if truth.is_file() {
        return Ok((video, Truth::read(&truth).map_err(anyhow::Error::msg)?));
    }
    rig.demo_video(5, SECONDS)
}

/// Gateway alone, in a process and with a spool of its own, on the broker of a pipeline.
pub struct Alone {
    pub client: Client,
    pub spool: PathBuf,
    pub child: tokio::process::Child,
}

impl Alone {
    /// Starts it with further settings and environment variables.
    pub async fn start(rig: &Rig, name: &str, set: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let spool = rig.media().join(name);
        let own = [format!("bus.url={}", rig.broker.url()), format!("http.spool={}", spool.display())];
        let set = own.iter().map(String::as_str).chain(set.iter().copied());
        let mut child = tokio::process::Command::new(vidi()?)
            .args(set.flat_map(|set| ["--set", set]))
            .args(["gateway", "--http", "127.0.0.1:0"])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = child.stdout.take().context("no standard output")?;
        let line = BufReader::new(said).lines().next_line().await?.context("it said nothing")?;
        let address = line.strip_prefix("gateway: http://").and_then(|line| line.split(',').next());
        let client = Client { address: address.context(line.clone())?.to_owned(), token: None };
        Ok(Alone { client, spool, child })
    }

    /// Names of the files in its spool.
    pub fn spooled(&self) -> anyhow::Result<Vec<String>> {
        let dir = std::fs::read_dir(&self.spool)?;
        let names = dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
        names.sort();
        Ok(names)
    }

    /// Resident bytes of its process: now, and at most until now.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        memory(self.child.id().context("it has ended")?)
    }
}

/// Resident bytes of a process: now, and at most until now.
pub fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let figure = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    };
    Ok((figure("VmRSS:")?, figure("VmHWM:")?))
}
