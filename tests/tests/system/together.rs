//! Messages that wait for a stage are computed together, on a real broker: each has its own outputs, acknowledgement and end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::jetstream::{self, stream::Stream};
use config::{BusConfig, Storage};
use deploy::up::broker::Broker;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{FeatureBatch, JobId, Modality, Output, PcmWindow};
use protocol::plan::{AudioPlan, MediaPlan};
use protocol::stage::{Later, Port, Stage, Stop, Work};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire;
use runtime::bus::{Bus, Role, headers};
use runtime::run::Ended;
use runtime::run::device::DeviceLost;
use runtime::run::rescue::Search;
use runtime::run::service::InstanceInfo;
use runtime::subject::StreamName;
use tests::harness::{brokers, signal};
use tests::shipped::Shipped;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(60);
/// Messages that wait, each of a job of its own.
const MESSAGES: usize = 11;
/// Messages that come while the queue is searched.
const SEARCHED: usize = 300;
/// Messages that the stage takes together.
const TOGETHER: usize = 4;
/// Jobs whose message panics the stage, and fails with all that is beside it. Both are beside others in the first pass or in the
/// second, for which four wait, however many were there for the first.
const PANICS: &str = "job-2";
const FAILS: &str = "job-4";

/// What a stage has done, and a door before its first pass.
#[derive(Default)]
struct Course {
    open: Mutex<bool>,
    opened: Condvar,
    /// Jobs of each pass.
    passes: Mutex<Vec<Vec<String>>>,
}

impl Course {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }

    fn passes(&self) -> Vec<Vec<String>> {
        self.passes.lock().unwrap().clone()
    }
}

/// Stage that takes four windows together, and makes silence of each.
struct Gathering {
    course: Arc<Course>,
    kind: Kind,
}

/// What a stage does behind the door.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// It computes, as on a CPU.
    Computes,
    /// The same, and the jobs that are to fail do.
    Fails,
    /// All do, since the device is lost.
    LosesDevice,
    /// It launches work at once, which a device does behind the door.
    Launches,
}

impl Stage for Gathering {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    fn units(_: &PcmWindow<'_>) -> u64 {
        1
    }

    fn together(&self) -> u64 {
        TOGETHER as u64
    }

    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        self.process_together(vec![Work { input, port }]).into_iter().collect()
    }

    fn process_together<'a>(&mut self, works: Vec<Work<'a, PcmWindow<'a>>>) -> Vec<Result<(), Stop>> {
        let jobs: Vec<String> = works.iter().map(|work| work.input.job.to_string()).collect();
        self.course.passes.lock().unwrap().push(jobs.clone());
        if self.kind == Kind::Launches {
            let later = |input, course: Arc<Course>| {
                Later::new(move |emit| {
                    course.wait();
                    emit(silence(input)?)
                })
            };
            let launched = works.into_iter();
            return launched
                .map(|work| work.port.emit_later(later(window(&work.input.job), self.course.clone())))
                .collect();
        }
        self.course.wait();
        if self.kind == Kind::LosesDevice {
            return works
                .iter()
                .map(|_| Err(JobError::new(ErrorKind::Internal, "an illegal address").into()))
                .collect();
        }
        let strict = self.kind == Kind::Fails;
        assert!(!(strict && jobs.iter().any(|job| job == PANICS)), "a message that panics");
        if strict && jobs.iter().any(|job| job == FAILS) {
            return works.iter().map(|_| Err(JobError::new(ErrorKind::Internal, "no good").into())).collect();
        }
        works.into_iter().map(|Work { input, port }| port.emit(silence(input)?)).collect()
    }
}

/// Features of a window.
fn silence(input: PcmWindow<'_>) -> Result<Output<'static>, Stop> {
    let rows = input.plan.audio.as_ref().map_or(0, |audio| audio.window_rows(input.index)) as usize;
    let tensor = Tensor::new(Dtype::F32, &[rows, 1], vec![0; 4 * rows])?;
    let (v, job, plan) = (input.v, input.job, input.plan);
    Ok(Output::Features(FeatureBatch { v, job, plan, modality: Modality::Audio, offset: 0, tensor }))
}

/// Broker with the shipped users, a worker of the stage on it, and messages that waited before it came.
struct Rig {
    broker: Broker,
    shipped: Shipped,
    config: BusConfig,
    operator: Bus,
    course: Arc<Course>,
    stop: watch::Sender<bool>,
    worker: JoinHandle<Result<(), Ended>>,
}

/// Starts a worker of the stage.
async fn worker(
    config: &BusConfig,
    kind: Kind,
    course: &Arc<Course>,
) -> anyhow::Result<(watch::Sender<bool>, JoinHandle<Result<(), Ended>>)> {
    let bus = Bus::connect(config, Role::Stage(StageName::Audio), SOON).await?;
    let stage = Gathering { course: course.clone(), kind };
    let lost = move || (kind == Kind::LosesDevice).then(|| "the device is lost".to_owned());
    let info = InstanceInfo { device_lost: DeviceLost(Arc::new(lost)), ..InstanceInfo::default() };
    let (stop, stopping) = watch::channel(false);
    Ok((stop, tokio::spawn(runtime::run::run(bus, stage, info, stopping))))
}

impl Rig {
    async fn start(program: Option<&Path>, kind: Kind) -> anyhow::Result<Self> {
        Self::start_in(Storage::File, program, kind).await
    }

    async fn start_in(storage: Storage, program: Option<&Path>, kind: Kind) -> anyhow::Result<Self> {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program).await?;
        let mut config = shipped.bus(&broker)?;
        config.max_deliver = 2;
        config.stream_bytes = 4 << 20;
        config.data_storage = storage;
        Bus::connect(&config, Role::Stage(StageName::Llm), SOON).await?.ensure_streams().await?;
        let operator = Bus::connect(&config, Role::Operator, SOON).await?;
        for i in 0..MESSAGES {
            publish(&operator, &format!("job-{i}")).await?;
        }
        let course = Arc::new(Course::default());
        let (stop, worker) = worker(&config, kind, &course).await?;
        Ok(Rig { broker, shipped, config, operator, course, stop, worker })
    }

    /// Messages of the stage's queue that nobody has, and that are in flight.
    async fn queue(&self) -> anyhow::Result<(u64, usize)> {
        let js = jetstream::new(self.operator.client().clone());
        let stream = StreamName::Audio.on(self.operator.subjects());
        let mut queue: jetstream::consumer::PullConsumer = js.get_consumer_from_stream("audio", stream).await?;
        let info = queue.info().await?;
        Ok((info.num_pending, info.num_ack_pending))
    }

    /// Waits until the queue is as it should be.
    async fn until(&self, what: &str, fits: impl Fn(u64, usize) -> bool) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let (pending, in_flight) = self.queue().await?;
            if fits(pending, in_flight) {
                return Ok(());
            }
            let passes = self.course.passes();
            ensure!(since.elapsed() < SOON, "{what}: {pending} pending, {in_flight} in flight, passes {passes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the first pass has begun and as much as a pass takes waits for it; messages of the first pass.
    async fn until_a_pass_waits(&self) -> anyhow::Result<usize> {
        let first = || self.course.passes().first().map_or(usize::MAX / 2, Vec::len);
        self.until("a pass waits", |_, in_flight| in_flight >= first() + TOGETHER).await?;
        Ok(first())
    }

    /// Messages of a stream.
    async fn stored(&self, stream: StreamName) -> anyhow::Result<u64> {
        let js = jetstream::new(self.operator.client().clone());
        Ok(js.get_stream(stream.on(self.operator.subjects())).await?.get_info().await?.state.messages)
    }

    /// Stores messages of nobody on a stream until the broker takes no more of any size.
    async fn fill(&self, name: StreamName) -> anyhow::Result<Stream> {
        let js = jetstream::new(self.operator.client().clone());
        let stream = js.get_stream(name.on(self.operator.subjects())).await?;
        let subject = self.operator.subjects().input(StageName::Fuse, &JobId::new("nobody")?);
        for bytes in [1 << 20, 1 << 14, 1 << 8, 1] {
            while js.publish(subject.clone(), vec![0; bytes].into()).await?.await.is_ok() {}
        }
        Ok(stream)
    }

    /// Kills the broker and starts it again, with all streams.
    async fn restart_broker(&mut self, program: Option<&Path>) -> anyhow::Result<()> {
        let port = self.broker.url().rsplit(':').next().unwrap_or_default().parse()?;
        signal(self.broker.pid().context("the broker has ended")?, "KILL")?;
        self.broker.ended().await;
        self.broker = self.shipped.broker_at(program, port).await?;
        Bus::connect(&self.config, Role::Stage(StageName::Llm), SOON).await?.ensure_streams().await?;
        Ok(())
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        Ok(tokio::time::timeout(SOON, self.worker).await.context("it did not leave")???)
    }

    /// Waits until the worker has left by itself, and starts another; why it left.
    async fn replaced(&mut self, kind: Kind) -> anyhow::Result<Result<(), Ended>> {
        let left = tokio::time::timeout(SOON, &mut self.worker).await.context("it did not leave")??;
        (self.stop, self.worker) = worker(&self.config, kind, &self.course).await?;
        Ok(left)
    }
}

/// A second of silence, all of the video's sound.
fn window(job: &JobId) -> PcmWindow<'static> {
    let samples = 16_000;
    let plan = MediaPlan { duration_s: 1.0, audio: AudioPlan::new(samples), ..MediaPlan::default() };
    let tensor = Tensor::from_i16(&vec![0; samples as usize]);
    PcmWindow { v: wire::VERSION, job: job.clone(), plan, index: 0, tensor }
}

async fn publish(bus: &Bus, job: &str) -> anyhow::Result<()> {
    let job = JobId::new(job)?;
    let body = wire::encode(&window(&job));
    let subject = bus.subjects().input(StageName::Audio, &job);
    let stored = bus.store(subject, &format!("{job}/0"), &headers(&job), body.into(), std::future::pending()).await;
    ensure!(stored.is_ok(), "{job}: not stored");
    Ok(())
}

/// Times that each job's message was in a pass.
fn counts(passes: &[Vec<String>]) -> BTreeMap<&str, usize> {
    passes.iter().flatten().fold(BTreeMap::new(), |mut counts, job| {
        *counts.entry(job.as_str()).or_default() += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_what_waits_together_and_holds_no_more_than_one_pass_beside_the_one_it_computes()
-> anyhow::Result<()> {
    for program in brokers() {
        let rig = Rig::start(program.as_deref(), Kind::Computes).await?;
        // The first pass takes what is there, be it one message; the next pass waits while it computes, and no more than that.
        let first = rig.until_a_pass_waits().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (pending, in_flight) = rig.queue().await?;
        ensure!(first + TOGETHER == in_flight, "{program:?}: {first} are computed and {in_flight} in flight");
        ensure!(pending as usize == MESSAGES - in_flight, "{program:?}: {pending} for others");
        rig.course.open();
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        let passes = rig.course.passes();
        ensure!(passes[1].len() == TOGETHER, "{program:?}: those that waited pass together: {passes:?}");
        ensure!(passes.iter().all(|pass| (1..=TOGETHER).contains(&pass.len())), "{program:?}: {passes:?}");
        let counts = counts(&passes);
        ensure!(counts.len() == MESSAGES && counts.values().all(|&n| n == 1), "{program:?}: {passes:?}");
        ensure!(rig.stored(StreamName::Features).await? == MESSAGES as u64, "{program:?}: one output each");
        rig.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fails_or_panics_ends_alone_and_those_beside_it_are_done_at_the_first_try() -> anyhow::Result<()>
{
    for program in brokers() {
        let rig = Rig::start(program.as_deref(), Kind::Fails).await?;
        rig.until_a_pass_waits().await?;
        rig.course.open();
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        let passes = rig.course.passes();
        for culprit in [PANICS, FAILS] {
            let beside = passes.iter().any(|pass| pass.len() > 1 && pass.iter().any(|job| job == culprit));
            let alone = passes.iter().filter(|pass| **pass == [culprit]).count();
            ensure!(beside && alone > 0, "{program:?}: {culprit} beside others, then alone: {passes:?}");
        }
        // The one that panics is delivered twice, and in no company the second time.
        let (counts, company) = (counts(&passes), |job: &str| {
            passes.iter().filter(|pass| pass.len() > 1 && pass.iter().any(|other| other == job)).count()
        });
        ensure!(counts.len() == MESSAGES && counts.keys().all(|job| company(job) <= 1), "{program:?}: {passes:?}");
        ensure!(counts[PANICS] == 3 && counts[FAILS] == 2, "{program:?}: {passes:?}");
        ensure!(rig.stored(StreamName::Features).await? == MESSAGES as u64 - 2, "{program:?}: {passes:?}");
        ensure!(rig.stored(StreamName::Dead).await? == 1, "{program:?}: the message that panics is kept");
        rig.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_device_is_lost_leaves_and_fails_no_job() -> anyhow::Result<()> {
    for program in brokers() {
        let mut rig = Rig::start(program.as_deref(), Kind::LosesDevice).await?;
        rig.until_a_pass_waits().await?;
        rig.course.open();
        let left = rig.replaced(Kind::Computes).await?;
        ensure!(matches!(left, Err(Ended::Device(_))), "{program:?}: {left:?}");
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        ensure!(rig.stored(StreamName::Features).await? == MESSAGES as u64, "{program:?}: one output each");
        ensure!(rig.stored(StreamName::Dead).await? == 0, "{program:?}: a message was given up");
        rig.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_launched_faster_than_a_device_does_it_waits_here_and_passes_together() -> anyhow::Result<()> {
    for program in brokers() {
        let rig = Rig::start(program.as_deref(), Kind::Launches).await?;
        // Two passes are the device's, and one waits.
        let launched = || rig.course.passes().iter().map(Vec::len).sum::<usize>();
        rig.until("a pass waits", |_, in_flight| {
            let two = rig.course.passes().len() == 2;
            two && in_flight >= MESSAGES.min(launched() + TOGETHER)
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (first, (_, in_flight)) = (rig.course.passes(), rig.queue().await?);
        let waiting = in_flight - launched();
        ensure!(
            first.len() == 2 && waiting <= TOGETHER,
            "{program:?}: {in_flight} in flight, of those {first:?} launched"
        );
        // However slow the broker is: it stores no output until they have begun.
        let full = rig.fill(StreamName::Features).await?;
        rig.course.open();
        rig.until("those that waited have begun", |_, _| rig.course.passes().len() > 2).await?;
        full.purge().await?;
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        let passes = rig.course.passes();
        ensure!(passes[2].len() == waiting, "{program:?}: those that waited pass together: {passes:?}");
        let counts = counts(&passes);
        ensure!(counts.len() == MESSAGES && counts.values().all(|&n| n == 1), "{program:?}: {passes:?}");
        ensure!(rig.stored(StreamName::Features).await? == MESSAGES as u64, "{program:?}: one output each");
        rig.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_lost_is_done_and_acknowledged_for_no_other_message() -> anyhow::Result<()> {
    for program in brokers() {
        let mut rig = Rig::start_in(Storage::Memory, program.as_deref(), Kind::Computes).await?;
        rig.until_a_pass_waits().await?;
        let begun = rig.queue().await?.1;
        // From then on the stream counts anew: the new messages have the sequences of those that the worker has.
        rig.restart_broker(program.as_deref()).await?;
        for i in 0..MESSAGES {
            publish(&rig.operator, &format!("new-{i}")).await?;
        }
        rig.course.open();
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        let passes = rig.course.passes();
        let counts = counts(&passes);
        let new = counts.iter().filter(|(job, _)| job.starts_with("new-")).count();
        ensure!(new == MESSAGES, "{program:?}: {new} of the new messages were worked on: {passes:?}");
        ensure!(counts.values().all(|&n| n == 1) && counts.len() == MESSAGES + begun, "{program:?}: {passes:?}");
        ensure!(rig.stored(StreamName::Features).await? == (MESSAGES + begun) as u64, "{program:?}: one output each");
        rig.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_and_delivered_while_the_queue_is_searched_is_not_taken_for_forgotten() -> anyhow::Result<()> {
    for program in brokers() {
        let rig = Rig::start(program.as_deref(), Kind::Computes).await?;
        rig.course.open();
        let llm = Bus::connect(&rig.config, Role::Stage(StageName::Llm), SOON).await?;
        // A search holds no more than what the broker said a moment ago, and meanwhile messages come and go.
        let searching = tokio::spawn(async move {
            let mut search = Search::of(StreamName::Audio, &llm);
            loop {
                search.look(&llm).await;
            }
        });
        for i in 0..SEARCHED {
            publish(&rig.operator, &format!("new-{i}")).await?;
        }
        rig.until("all done", |pending, in_flight| (pending, in_flight) == (0, 0)).await?;
        searching.abort();
        let passes = rig.course.passes();
        let counts = counts(&passes);
        ensure!(counts.len() == MESSAGES + SEARCHED, "{program:?}: {} jobs were worked on", counts.len());
        let twice: Vec<_> = counts.iter().filter(|&(_, &n)| n > 1).collect();
        ensure!(twice.is_empty(), "{program:?}: worked on more than once: {twice:?}");
        rig.end().await?;
    }
    Ok(())
}
