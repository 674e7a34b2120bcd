//! The capacity model of deploy/CAPACITY.md, held against real brokers and the real run loops with stages that only wait.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use config::{Config, ModelSource};
use deploy::recording::publication::output;
use deploy::recording::{Kind, Reader};
use model::config_json::ModelConfig;
use protocol::error::StageName;
use protocol::message::Output;
use protocol::plan::MediaPlan;
use tests::capacity::model::{Flow, Traffic, Video, Widths};
use tests::capacity::report::Report;
use tests::capacity::run;
use tests::capacity::scenario::{Arrivals, Scenario};
use tests::capacity::times::{Footage, Times};
use tests::harness::{checkpoint, root};

/// Share by which the bytes that the broker took in may exceed the model's: acknowledgements, events, reports.
const MOST_BESIDE: f64 = 0.05;
/// The same where a job of the four, and some messages, were worked on twice.
const MOST_TWICE: f64 = 0.6;

fn scenario() -> Scenario {
    let defaults = Config::default();
    Scenario {
        per_hour: 3600.0,
        jobs: 4,
        arrivals: Arrivals::Open,
        seed: 7,
        video: Video { seconds: 12, fps: 1, answer_tokens: 8 },
        footage: Footage::named("1080p").unwrap(),
        times: Times::named("h200-fp8").unwrap(),
        asked: vec![(StageName::Decode, 2), (StageName::Llm, 2)],
        speed: 4.0,
        prefixes: 1,
        brokers: 1,
        batch_frames: defaults.decode.batch_frames,
        message_bytes: defaults.bus.message_bytes,
        token_bytes: defaults.bus.token_bytes,
    }
}

/// What must hold however busy the machine is: nothing is lost, no byte is missing, and no stage computed less than the model
/// says. Where nothing was done twice, as a machine that stands still for seconds may cause, nor more. True then.
fn check(report: &Report) -> anyhow::Result<bool> {
    ensure!(report.answered() == report.scenario.jobs, "{report}");
    let [beside, given] = report.broker.bytes.map(|bytes| bytes as f64 / report.model_bytes as f64 - 1.0);
    ensure!((-0.01..MOST_TWICE).contains(&beside) && given > -0.01, "{beside:+.3} of the model's bytes in; {report}");
    ensure!(report.broker.messages[0] > report.model_messages, "{report}");
    let once = report.redelivered == 0 && beside < MOST_BESIDE;
    for stage in &report.stages {
        let (said, computed) = (stage.model[1], stage.computed);
        let most = if once { 1.15 } else { 1.15 + MOST_TWICE };
        ensure!((0.9..most).contains(&(computed / said)), "stage-{}: {computed} and not {said}; {report}", stage.stage);
        // A busy machine only makes a stage busy for longer.
        ensure!(stage.busy > stage.computed * 0.8, "stage-{}; {report}", stage.stage);
    }
    Ok(once)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_takes_of_broker_and_stages_what_the_model_says() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let report = run::run(&scenario(), dir.path()).await?;
    ensure!(report.jobs.iter().all(|job| job.submitted_ms <= job.ended_ms && job.planned_ms <= job.first_token_ms));
    check(&report).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_on_two_brokers_share_a_load_by_halves() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let report = run::run(&Scenario { prefixes: 2, brokers: 2, ..scenario() }, dir.path()).await?;
    if check(&report)? {
        let [one, other] = [0, 1].map(|n| report.brokers[n].bytes[0] as f64);
        ensure!((one / other - 1.0).abs() < MOST_BESIDE, "{one} and {other} bytes; {report}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_that_cannot_be_run_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let bad = [
        Scenario { per_hour: 0.0, ..scenario() },
        Scenario { jobs: 0, ..scenario() },
        Scenario { speed: f64::INFINITY, ..scenario() },
        Scenario { brokers: 2, ..scenario() },
        Scenario { asked: vec![(StageName::Llm, 0)], ..scenario() },
        Scenario { video: Video { seconds: 12, fps: 0, answer_tokens: 1 }, ..scenario() },
        Scenario { video: Video { seconds: 12, fps: 1, answer_tokens: 0 }, ..scenario() },
        Scenario { video: Video { seconds: 0, fps: 1, answer_tokens: 1 }, ..scenario() },
    ];
    for scenario in bad {
        assert!(run::run(&scenario, dir.path()).await.is_err(), "{scenario:?}");
    }
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

/// Rows of a message, in bytes, its id, and what it says of the plan.
fn rows(output: &Output<'_>) -> (u64, String, MediaPlan) {
    let (tensor, plan) = match output {
        Output::Frames(m) => (&m.tensor, &m.plan),
        Output::Pcm(m) => (&m.tensor, &m.plan),
        Output::Features(m) => (&m.tensor, &m.plan),
        Output::Tokens(m) => (&m.tensor, &m.plan),
    };
    (tensor.data().len() as u64, output.message_id(), plan.clone())
}

#[test]
fn the_messages_of_a_recorded_job_are_as_many_and_as_large_as_the_model_says() -> anyhow::Result<()> {
    let mut reader = Reader::open(&root().join("tests/golden/recordings/v1-clip.vidirec"))?;
    let body = (reader.header().max_payload - 1024).min(Config::default().bus.message_bytes);
    let (mut flows, mut seen) = (BTreeMap::<Kind, Flow>::new(), BTreeSet::new());
    let mut plan = MediaPlan::default();
    for record in reader.records() {
        let Some(kind) = record.kind() else { continue };
        let Ok(output) = output(kind, &record.body) else { continue };
        let (bytes, id, said) = rows(&output);
        if !seen.insert(id) {
            continue;
        }
        let flow = flows.entry(kind).or_default();
        (flow.messages, flow.bytes) = (flow.messages + 1, flow.bytes + bytes);
        plan.image = said.image.or(plan.image);
        plan.audio = said.audio.or(plan.audio);
    }
    let source = ModelSource { dir: checkpoint("tied"), ..ModelSource::default() };
    let tied = ModelConfig::configured(&source).map_err(|e| anyhow::anyhow!("{e}"))?;
    let widths =
        Widths { cell: tied.image_cell_width(), state: tied.audio.d_model, token: tied.hidden_size, value_bytes: 4 };
    let said = Traffic::of(&plan, &widths, (Config::default().decode.batch_frames, body));
    for (kind, flow) in [
        (Kind::Frames, said.frames),
        (Kind::Audio, said.audio),
        (Kind::Features, said.features),
        (Kind::Tokens, said.tokens),
    ] {
        let found = flows.get(&kind).context("nothing of that kind")?;
        ensure!(*found == flow, "{kind:?}: {found:?} and not {flow:?}; {plan:?}");
    }
    Ok(())
}
