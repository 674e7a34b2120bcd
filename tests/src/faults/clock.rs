//! A clock that is off.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event};
use protocol::message::JobRequest;
use runtime::bus::events::now_ms;

use super::load::{self, setup};
use super::look;
use super::shim::Shim;
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, Setup, terminal};

/// Time that a clock is off.
const OFF_MS: i64 = 120_000;

/// stage-llm's clock two minutes ahead, and two minutes behind.
pub async fn clock(scale: &Scale) -> Row {
    let expected = "deadlines hold to a second, events and timings are dated by the broker's clock";
    let case = Case { name: "a clock that is off".to_owned(), expected, bound_s: scale.bound(1.5) };
    case.run(async {
        let mut latest: f64 = 0.0;
        for off_ms in [OFF_MS, -OFF_MS] {
            latest = latest.max(clock_off(scale, off_ms).await.with_context(|| format!("{off_ms} ms off"))?);
        }
        let injected = format!("the clock of stage-llm {} s ahead, then as far behind", OFF_MS / 1000);
        let observed = format!("answered within a deadline of 60 s, one of 2 s kept to {latest:.2} s");
        Ok(Seen { injected, observed, seconds: Some(latest) })
    })
    .await
}

/// Seconds by which a deadline was missed.
async fn clock_off(scale: &Scale, off_ms: i64) -> anyhow::Result<f64> {
    let shim = Shim::new(StageName::Llm)?;
    let rig = Rig::start(Setup { env: shim.environment(off_ms), ..setup(scale) }).await?;
    let request = JobRequest { deadline_s: Some(60.0), ..load::long_job(&rig, "in-time", 8)? };
    let from = now_ms();
    let events = rig.answer(&request).await?;
    let to = now_ms();
    let result = look::result(&events).with_context(|| look::tail(&rig))?;
    let mut dated: Vec<u64> = events.iter().map(|e| e.at_ms).collect();
    dated.extend(result.timings.stages.values().flat_map(|t| [t.first_at_ms, t.last_at_ms]));
    // A stage may have begun to wait before the job, and what is rounded may be rounded up.
    let sound = |at: &u64| (from.saturating_sub(10_000)..=to + 1000).contains(at);
    ensure!(dated.iter().all(sound), "{dated:?} is not within {from} and {to}");
    // One in flight, one that waits.
    let mut latest: f64 = 0.0;
    let submitted = Instant::now();
    let mut jobs = Vec::new();
    for name in ["late", "waits"] {
        let request = JobRequest { deadline_s: Some(2.0), ..load::long_job(&rig, name, 8192)? };
        client::submit(&rig.bus, &request).await?;
        jobs.push(request.job);
    }
    for job in jobs {
        let ended = tokio::time::timeout(Duration::from_secs(60), rig.events(&job)).await;
        let events = ended.context("not ended 58 s after its deadline")??;
        match terminal(&events)? {
            Event::Cancelled { by: CancelledBy::Deadline, .. } => {}
            other => bail!("{other:?}; {}", look::tail(&rig)),
        }
        latest = latest.max(submitted.elapsed().as_secs_f64() - 2.0);
    }
    ensure!(latest > -0.5, "cancelled {} s before its deadline", -latest);
    Ok(latest)
}
