//! An engine that stands still.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use protocol::error::StageName;
use protocol::event::Event;

use super::load::{self, setup};
use super::look;
use super::shim::Shim;
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, Setup};

/// Limit of a step; the golden checkpoint takes milliseconds.
const STEP_S: f64 = 5.0;

/// Engine that stands still in the middle of a message or a job.
pub async fn hung(scale: &Scale) -> Row {
    let expected = "its process says so and ends, another takes the message, the answer of an undisturbed run";
    let stages: &[StageName] = match scale.jobs {
        0..=16 => &[StageName::Vision, StageName::Llm],
        _ => &StageName::ALL,
    };
    // The limit, the redelivery, the start of the process, and the answer.
    let case = Case { name: "an engine that hangs".to_owned(), expected, bound_s: scale.bound(STEP_S + 15.0) };
    case.run(async {
        let mut slowest: f64 = 0.0;
        for &stage in stages {
            slowest = slowest.max(hung_engine(scale, stage).await.with_context(|| format!("stage-{stage}"))?);
        }
        let names = stages.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ");
        let injected = format!("the engine's thread of {names} stopped for ever, steps of {STEP_S} s at most");
        let observed = format!("ended by name, answered anew, at most {slowest:.1} s after it hung");
        Ok(Seen { injected, observed, seconds: Some(slowest) })
    })
    .await
}

/// Seconds from the hang to the answer.
async fn hung_engine(scale: &Scale, stage: StageName) -> anyhow::Result<f64> {
    let shim = Shim::new(stage)?;
    let mut setup = Setup { env: shim.environment(0), ..setup(scale) };
    setup.set.push(format!("watchdog.step_s={STEP_S}"));
    setup.set.extend(["decode", "vision", "audio", "fuse", "llm"].map(|stage| format!("watchdog.{stage}_s=0")));
    let rig = Rig::start(setup).await?;
    // Long enough to be met in the middle.
    let tokens = if stage == StageName::Llm { 3000 } else { 24 };
    let undisturbed =
        look::result(&rig.answer(&load::long_job(&rig, "undisturbed", tokens)?).await?)?.token_ids.clone();
    let before = rig.pids(stage);
    let request = load::long_job(&rig, "hangs", tokens)?;
    client::submit(&rig.bus, &request).await?;
    look::wait_for(&rig, &request.job, |e| match stage {
        StageName::Llm => matches!(e, Event::Text { .. }),
        _ => matches!(e, Event::Planned { .. }),
    })
    .await?;
    shim.hang().await?;
    let hung = Instant::now();
    // Well over the bound, and below the time that the rig waits: who never ends is told from who is late.
    let events = tokio::time::timeout(Duration::from_secs(100), rig.events(&request.job)).await;
    let events = events.with_context(|| format!("not ended 100 s after it hung; {}", look::tail(&rig)))??;
    let seconds = hung.elapsed().as_secs_f64();
    ensure!(look::result(&events).with_context(|| look::tail(&rig))?.token_ids == undisturbed, "another answer");
    let said = format!("the engine of stage-{stage} hangs: no step of ");
    ensure!(rig.log().contains(&said), "nothing was said; {}", look::tail(&rig));
    rig.wait_ready().await?;
    ensure!(rig.pids(stage) != before, "the process that hung is still there");
    look::empty(&rig).await?;
    Ok(seconds)
}
