//! What a process counts. It counts always; whether anybody may read it is [configured](super::listen).

use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::names;
use protocol::error::StageName;
use protocol::event::{Cached, Event, JobResult};
use protocol::memory;

/// Upper ends of the classes of durations: of a job, of a message, and of a token, seconds.
const JOB_S: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0];
const BATCH_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 180.0];
const TOKEN_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    task: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    stage: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    r#where: &'static str,
}

/// Labels of a metric that is there only once it is counted, and has none.
type Unlabelled = [(&'static str, &'static str); 0];
const ALONE: Unlabelled = [];

/// How an instance of a stage is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// What waits for the stage, in the whole pipeline.
    pub waiting: u64,
    /// What the instance has in flight.
    pub in_flight: u64,
}

/// Instance of a stage whose levels are asked for when somebody reads the metrics.
struct Instance {
    stage: StageName,
    on_gpu: bool,
    budget_bytes: u64,
    /// None once it has ended.
    levels: Box<dyn Fn() -> Option<Levels> + Send + Sync>,
}

struct Counts {
    registry: Registry,
    jobs: Family<Ended, Counter>,
    waiting: Family<Unlabelled, Gauge>,
    running: Family<Unlabelled, Gauge>,
    job_seconds: Histograms<Phase>,
    first_token: Histograms<Unlabelled>,
    output_token: Histograms<Unlabelled>,
    batches: Histograms<Of>,
    items: Family<Kind, Counter>,
    gpu_bytes: Family<Kind, Gauge>,
    kept: Family<Place, Gauge>,
    hits: Family<Place, Counter>,
    redelivered: Family<Of, Counter>,
    dead: Family<Of, Counter>,
    resident: Gauge,
    instances: Mutex<Vec<Instance>>,
    tasks: OnceLock<Vec<String>>,
}

/// The process's own.
static COUNTS: LazyLock<Counts> = LazyLock::new(Counts::new);

impl Counts {
    fn new() -> Self {
        let job: fn() -> Histogram = || Histogram::new(JOB_S);
        let batch: fn() -> Histogram = || Histogram::new(BATCH_S);
        let token: fn() -> Histogram = || Histogram::new(TOKEN_S);
        let counts = Counts {
            registry: Registry::default(),
            jobs: Family::default(),
            waiting: Family::default(),
            running: Family::default(),
            job_seconds: Family::new_with_constructor(job),
            first_token: Family::new_with_constructor(job),
            output_token: Family::new_with_constructor(token),
            batches: Family::new_with_constructor(batch),
            items: Family::default(),
            gpu_bytes: Family::default(),
            kept: Family::default(),
            hits: Family::default(),
            redelivered: Family::default(),
            dead: Family::default(),
            resident: Gauge::default(),
            instances: Mutex::default(),
            tasks: OnceLock::new(),
        };
        let mut registry = Registry::default();
        names::BUILD_INFO.register(&mut registry, Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        names::RESIDENT_BYTES.register(&mut registry, counts.resident.clone());
        names::JOBS.register(&mut registry, counts.jobs.clone());
        names::JOBS_WAITING.register(&mut registry, counts.waiting.clone());
        names::JOBS_RUNNING.register(&mut registry, counts.running.clone());
        names::JOB_SECONDS.register(&mut registry, counts.job_seconds.clone());
        names::FIRST_TOKEN.register(&mut registry, counts.first_token.clone());
        names::OUTPUT_TOKEN.register(&mut registry, counts.output_token.clone());
        names::BATCH_SECONDS.register(&mut registry, counts.batches.clone());
        names::ITEMS.register(&mut registry, counts.items.clone());
        names::GPU_BYTES.register(&mut registry, counts.gpu_bytes.clone());
        names::KEPT_VIDEOS.register(&mut registry, counts.kept.clone());
        names::KEPT_HITS.register(&mut registry, counts.hits.clone());
        names::REDELIVERED.register(&mut registry, counts.redelivered.clone());
        names::DEAD.register(&mut registry, counts.dead.clone());
        Counts { registry, ..counts }
    }

    fn instances(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every instance how it is now.
    fn look(&self) {
        let mut instances = self.instances();
        let (mut waiting, mut running, mut owns) = (0, 0, false);
        instances.retain(|instance| {
            let Some(levels) = (instance.levels)() else { return false };
            if instance.stage == StageName::Llm {
                (waiting, running, owns) = (levels.waiting.max(waiting), running + levels.in_flight, true);
            }
            if instance.on_gpu {
                let usage = memory::usage();
                for (kind, bytes) in [
                    ("used", usage.used_bytes),
                    ("peak", usage.peak_bytes),
                    ("reserved", usage.reserved_bytes),
                    ("budget", instance.budget_bytes),
                ] {
                    let label = Kind { stage: instance.stage.as_str(), kind };
                    self.gpu_bytes.get_or_create(&label).set(figure(bytes));
                }
            }
            true
        });
        if owns {
            self.waiting.get_or_create(&ALONE).set(figure(waiting));
            self.running.get_or_create(&ALONE).set(figure(running));
        }
        self.resident.set(figure(memory::resident().used_bytes));
    }
}

fn figure(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Adds an instance of a stage, whose `levels` are asked for at each reading until there are none.
pub fn watch(
    stage: StageName,
    device: &str,
    budget_bytes: u64,
    levels: impl Fn() -> Option<Levels> + Send + Sync + 'static,
) {
    let on_gpu = device.starts_with("cuda");
    COUNTS.instances().push(Instance { stage, on_gpu, budget_bytes, levels: Box::new(levels) });
}

/// Says which tasks there are: whoever asks may make names up, and a label must not.
pub fn know_tasks(tasks: Vec<String>) {
    // All stage-llm of a process have one model.
    let _ = COUNTS.tasks.set(tasks);
}

/// Counts the end of a job of a task, by the event that this process wrote.
pub fn job_ended(task: &str, end: &Event) {
    let outcome = match end {
        Event::Result(_) => "answered",
        Event::Failed { .. } => "failed",
        Event::Cancelled { .. } => "cancelled",
        _ => return,
    };
    let known = COUNTS.tasks.get().is_some_and(|tasks| tasks.iter().any(|known| known == task));
    let task = if known { task } else { "other" }.to_owned();
    COUNTS.jobs.get_or_create(&Ended { task, outcome }).inc();
}

/// Measures a phase of a job.
pub fn job_phase(phase: &'static str, seconds: f64) {
    COUNTS.job_seconds.get_or_create(&Phase { phase }).observe(seconds.max(0.0));
}

/// Measures an answer: times of its tokens, how many there are, and whether its video was kept.
pub fn answered(result: &JobResult) {
    let timings = &result.timings;
    job_phase("prefill", timings.first_token_s);
    COUNTS.first_token.get_or_create(&ALONE).observe(timings.first_token_s);
    if timings.tokens_per_s > 0.0 {
        COUNTS.output_token.get_or_create(&ALONE).observe(timings.tokens_per_s.recip());
    }
    items(StageName::Llm, "text_tokens", result.answer_tokens() as u64);
    match result.cached.place() {
        Some(place) => drop(COUNTS.hits.get_or_create(&Place { r#where: place }).inc()),
        None => {
            let plan = &result.plan;
            items(StageName::Llm, "image_tokens", plan.image.as_ref().map_or(0, |image| image.tokens));
            items(StageName::Llm, "audio_tokens", plan.audio.as_ref().map_or(0, |audio| audio.tokens));
        }
    }
}

/// Measures the time that a stage computed on a message.
pub fn batch(stage: StageName, computed: Duration) {
    COUNTS.batches.get_or_create(&Of { stage: stage.as_str() }).observe(computed.as_secs_f64());
}

/// Counts what a stage made.
pub fn items(stage: StageName, kind: &'static str, made: u64) {
    if made > 0 {
        COUNTS.items.get_or_create(&Kind { stage: stage.as_str(), kind }).inc_by(made);
    }
}

/// Counts a message that another delivery had come before.
pub fn redelivered(stage: StageName) {
    COUNTS.redelivered.get_or_create(&Of { stage: stage.as_str() }).inc();
}

/// Counts a message that no stage could use.
pub fn dead(stage: StageName) {
    COUNTS.dead.get_or_create(&Of { stage: stage.as_str() }).inc();
}

/// Notes how many videos are kept.
pub fn kept(memory: usize, disk: usize) {
    for (place, videos) in [(Cached::Memory, memory), (Cached::Disk, disk)] {
        if let Some(place) = place.place() {
            COUNTS.kept.get_or_create(&Place { r#where: place }).set(figure(videos as u64));
        }
    }
}

/// All that is counted here, and what else stands in `others`, in the text format that Prometheus reads (OpenMetrics).
///
/// # Errors
/// Of the formatter.
pub fn text(others: &[&Registry]) -> Result<String, std::fmt::Error> {
    COUNTS.look();
    let mut text = String::new();
    for registry in std::iter::once(&&COUNTS.registry).chain(others) {
        encode_registry(&mut text, registry)?;
    }
    encode_eof(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::error::{ErrorKind, JobError};

    #[test]
    fn what_clients_make_up_is_no_label_and_an_instance_that_has_ended_is_asked_no_more() {
        know_tasks(vec!["qa".to_owned()]);
        let failed = Event::Failed { error: JobError::new(ErrorKind::BadRequest, "unknown task") };
        for task in ["qa", "a\"b\n", "x"] {
            job_ended(task, &failed);
        }
        job_ended("qa", &Event::Accepted {});
        let alive = std::sync::Arc::new(());
        let (weak, budget) = (std::sync::Arc::downgrade(&alive), 0);
        watch(StageName::Llm, "cpu", budget, move || weak.upgrade().map(|_| Levels { waiting: 3, in_flight: 2 }));
        let text = text(&[]).unwrap();
        assert!(text.contains("vidi_jobs_total{task=\"qa\",outcome=\"failed\"} 1\n"), "{text}");
        assert!(text.contains("vidi_jobs_total{task=\"other\",outcome=\"failed\"} 2\n"), "{text}");
        assert!(text.contains("\nvidi_jobs_waiting 3\n") && text.contains("\nvidi_jobs_running 2\n"), "{text}");
        assert!(!text.contains("vidi_gpu_bytes"), "memory of the host is not a GPU's: {text}");
        assert!(text.contains("\nvidi_build_info{version=") && text.ends_with("# EOF\n"), "{text}");
        drop(alive);
        super::text(&[]).unwrap();
        assert!(COUNTS.instances().is_empty());
    }
}
