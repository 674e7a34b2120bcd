//! A broker, a stage-decode and workers that come and go, each in a runtime of its own, so that one can be killed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::service::{Service, ServiceExt};
use async_nats::{Message, Subscriber};
use config::Config;
use deploy::client;
use deploy::up::broker::{Broker, Options};
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, JobRequest};
use protocol::stage::KeptVideo;
use protocol::wire;
use protocol::workers::{OfferReply, WorkerNews};
use runtime::bus::{Bus, Role};
use runtime::run::device::DeviceLost;
use runtime::run::service::InstanceInfo;
use runtime::run::{self, Ended, owner};
use runtime::subject::StreamName;
use tempfile::TempDir;
use tests::faults::look;
use tests::harness::terminal;
use tests::media::video;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::SOON;
use super::model::{Kind, Model, Seen};

struct Worker {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    ended: JoinHandle<Result<(), Ended>>,
}

/// The pipeline of one test.
pub struct Pipeline {
    pub bus: Bus,
    config: Config,
    dir: TempDir,
    decode: Option<Worker>,
    workers: BTreeMap<String, Worker>,
    seen: Arc<Mutex<Seen>>,
    panicked: Arc<AtomicBool>,
    /// Whether the workers' device is lost.
    pub device_lost: Arc<AtomicBool>,
    asked: AtomicUsize,
    // The last one to go.
    _broker: Broker,
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

impl Pipeline {
    /// Starts a broker and a stage-decode that sees so many videos.
    pub async fn start(broker: Option<PathBuf>, videos: usize, set: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let program = Options { program: broker, ..Options::default() };
        let broker = Broker::start(&dir.path().join("broker"), &program).await?;
        let mut set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        set.extend([
            format!("bus.url={}", broker.url()),
            "bus.ack_wait_s=1".to_owned(),
            format!("decode.media_roots=[{:?}]", dir.path()),
        ]);
        let config = Config::load(None, [], &set).map_err(anyhow::Error::msg)?;
        video(&dir.path().join("0.mp4"), 2)?;
        for n in 1..videos {
            std::fs::copy(dir.path().join("0.mp4"), dir.path().join(format!("{n}.mp4")))?;
        }
        let bus = Bus::connect(&config.bus, Role::Operator, SOON).await?;
        bus.ensure_streams().await?;
        let (stop, stopped) = watch::channel(false);
        let runtime = runtime()?;
        let of_decode = config.clone();
        let ended = runtime.spawn(async move {
            let bus = Bus::connect(&of_decode.bus, Role::Stage(StageName::Decode), SOON).await?;
            let stage = stage_decode::open(&of_decode).expect("nothing that could be missing");
            run::run(bus, stage, InstanceInfo::default(), stopped).await
        });
        let decode = Some(Worker { runtime, stop, ended });
        Ok(Pipeline {
            bus,
            config,
            dir,
            decode,
            workers: BTreeMap::new(),
            seen: Arc::default(),
            panicked: Arc::default(),
            device_lost: Arc::default(),
            asked: AtomicUsize::new(0),
            _broker: broker,
        })
    }

    /// Starts a worker and waits until it is there.
    pub async fn worker(&mut self, name: &str) -> anyhow::Result<()> {
        let before = client::status(&self.bus, StageName::Llm).await?.len();
        let (stop, stopped) = watch::channel(false);
        let runtime = runtime()?;
        let (config, seen, panicked) = (self.config.clone(), self.seen.clone(), self.panicked.clone());
        let model = Model { name: name.to_owned(), seen, panicked, kept: VecDeque::new() };
        let affinity_wait = Duration::from_secs_f64(config.llm.affinity_wait_s);
        let lost = self.device_lost.clone();
        let asked = move || lost.load(Ordering::SeqCst).then(|| "the device is lost".to_owned());
        let info = InstanceInfo { affinity_wait, device_lost: DeviceLost(Arc::new(asked)), ..InstanceInfo::default() };
        let ended = runtime.spawn(async move {
            let bus = Bus::connect(&config.bus, Role::Stage(StageName::Llm), SOON).await?;
            owner::run(bus, model, info, stopped).await
        });
        self.workers.insert(name.to_owned(), Worker { runtime, stop, ended });
        let until = Instant::now() + SOON;
        while client::status(&self.bus, StageName::Llm).await?.len() <= before {
            ensure!(Instant::now() < until, "{name} does not come");
        }
        Ok(())
    }

    /// Drains a worker and waits until it has left.
    pub async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        self.workers.get(name).context("no such worker")?.stop.send_replace(true);
        Ok(self.left(name).await??)
    }

    /// Waits until a worker has left; why, where it was not told to.
    pub async fn left(&mut self, name: &str) -> anyhow::Result<Result<(), Ended>> {
        let worker = self.workers.remove(name).context("no such worker")?;
        let ended =
            tokio::time::timeout(SOON, worker.ended).await.with_context(|| format!("{name} does not leave"))??;
        worker.runtime.shutdown_background();
        Ok(ended)
    }

    /// Ends a worker with all that it is at, as if its process were killed.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let worker = self.workers.remove(name).with_context(|| format!("no worker {name:?}"))?;
        worker.runtime.shutdown_background();
        Ok(())
    }

    /// Submits a job about a video, whose answer takes so many steps.
    pub async fn submit(
        &self,
        kind: Kind,
        video: usize,
        steps: u32,
        change: impl FnOnce(&mut JobRequest),
    ) -> anyhow::Result<JobRequest> {
        let n = self.asked.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("{video}.mp4"));
        let mut request = JobRequest::new(JobId::new(format!("{kind:?}-{n}"))?, path.to_string_lossy(), kind.query());
        request.max_new_tokens = steps;
        change(&mut request);
        client::submit(&self.bus, &request).await?;
        // In this order, whichever worker admits it.
        let until = Instant::now() + SOON;
        while !look::log_of(&self.bus, &request.job).await.iter().any(|e| matches!(e.event, Event::Queued { .. })) {
            ensure!(Instant::now() < until, "{} is not queued", request.job);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(request)
    }

    /// Sends a request about the first video so many times at once, each as a message of its own.
    pub async fn send(&self, job: &str, times: usize) -> anyhow::Result<JobRequest> {
        let path = self.dir.path().join("0.mp4");
        let mut request = JobRequest::new(JobId::new(job)?, path.to_string_lossy(), Kind::Answer.query());
        request.max_new_tokens = 2;
        for _ in 0..times {
            self.bus.client().publish(self.bus.subjects().jobs(), wire::encode(&request).into()).await?;
        }
        self.bus.client().flush().await?;
        Ok(request)
    }

    /// All events of a job that ends.
    pub async fn events(&self, request: &JobRequest) -> anyhow::Result<Vec<JobEvent>> {
        let followed = tokio::time::timeout(SOON, look::followed(&self.bus, &request.job)).await;
        followed.with_context(|| format!("{} does not end; {:?}", request.job, self.log()))?
    }

    /// The one end of a job, whose text was told once.
    pub async fn end(&self, request: &JobRequest) -> anyhow::Result<Event> {
        let events = self.events(request).await?;
        if let Event::Result(result) = terminal(&events)? {
            look::told_once(&events, &result.text).with_context(|| request.job.to_string())?;
        }
        Ok(terminal(&events)?.clone())
    }

    /// What the engines have seen.
    pub fn seen<T>(&self, of: impl FnOnce(&Seen) -> T) -> T {
        of(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets a held job end.
    pub fn release(&self, request: &JobRequest) {
        self.release_after(request, Duration::ZERO);
    }

    /// Lets a held job end in a while.
    pub fn release_after(&self, request: &JobRequest, time: Duration) {
        let (seen, job) = (self.seen.clone(), request.job.clone());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            seen.lock().unwrap_or_else(PoisonError::into_inner).released.insert(job);
        });
    }

    /// The same, for an error.
    pub fn log(&self) -> String {
        self.seen(|seen| format!("{seen:#?}"))
    }

    /// Waits until the engines have seen something.
    pub async fn wait_for(&self, wanted: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        let until = Instant::now() + SOON;
        while !self.seen(&wanted) {
            ensure!(Instant::now() < until, "never seen; {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Jobs that workers have taken from their queue, as the broker says.
    pub async fn taken(&self) -> anyhow::Result<usize> {
        let line = self.bus.stream(StreamName::Line).await;
        Ok(line.consumer_info("priority-5").await?.num_ack_pending)
    }

    /// Waits until nothing is left of any job.
    pub async fn empty(&self) -> anyhow::Result<()> {
        let until = Instant::now() + SOON;
        loop {
            let left = look::left_over(&self.bus).await?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{left:?} is left");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A worker that says that it keeps videos and is idle, and does nothing.
pub struct Ghost {
    bus: Bus,
    offers: Subscriber,
    says: JoinHandle<()>,
}

impl Pipeline {
    /// A worker that says that it keeps these videos.
    pub async fn ghost(&self, videos: &[usize]) -> anyhow::Result<Ghost> {
        let bus = self.bus.clone();
        let offers = bus.client().subscribe(bus.subjects().offers("ghost")).await?;
        let keeps = videos.iter().map(|n| self.dir.path().join(format!("{n}.mp4")).to_string_lossy().into_owned());
        let keeps = keeps.map(|video| KeptVideo { video, span: None, fps: 1.0 }).collect();
        let news =
            WorkerNews { v: wire::VERSION, instance: "ghost".to_owned(), idle: true, keeps, ..WorkerNews::default() };
        let says = tokio::spawn({
            let bus = bus.clone();
            async move {
                loop {
                    bus.tell(bus.subjects().workers(), wire::encode(&news)).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        // Heard by now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Ghost { bus, offers, says })
    }

    /// A worker of a release before workers told each other how they are, as far as others see it.
    pub async fn earlier_release(&self) -> anyhow::Result<Service> {
        let prefix = self.bus.subjects().prefix();
        let metadata = [("stage", "llm"), ("instance", "llm-1-earlier"), ("prefix", prefix), ("wire", "1")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let builder = self.bus.client().service_builder().metadata(metadata.into());
        builder.start("vidi-llm", "0.0.1").await.map_err(|e| anyhow::anyhow!("{e}"))
    }
}

impl Ghost {
    /// The next job that it is offered.
    pub async fn next_offer(&mut self) -> anyhow::Result<Message> {
        tokio::time::timeout(SOON, self.offers.next()).await.context("no offer")?.context("the broker is gone")
    }

    /// Takes a job that it is offered, and says nothing more.
    pub async fn take(&self, offer: &Message) -> anyhow::Result<()> {
        self.says.abort();
        let to = offer.reply.clone().context("no inbox for an answer")?;
        let reply = wire::encode(&OfferReply { v: wire::VERSION, taken: true });
        Ok(self.bus.client().publish(to, reply.into()).await?)
    }
}

impl Drop for Ghost {
    fn drop(&mut self) {
        self.says.abort();
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers).into_values();
        workers.chain(self.decode.take()).for_each(|worker| worker.runtime.shutdown_background());
    }
}
