//! Weights of another checkpoint.

use std::borrow::Cow;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use deploy::client;
use protocol::error::{ErrorKind, StageName};
use protocol::event::Event;
use protocol::message::{JobId, Modality, TokenBatch};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire;
use runtime::bus::headers;

use super::load::{self, setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, checkpoint, terminal, vidi};

/// Stage with another checkpoint, and messages that were made with one.
pub async fn other_weights(scale: &Scale) -> Row {
    let expected =
        "the stage does not join and ends with status 6, the messages' jobs fail as model; both weights are named";
    let case = Case { name: "weights of another checkpoint".to_owned(), expected, bound_s: scale.bound(30.0) };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        for stage in ["vision", "fuse", "llm"] {
            let joins = Command::new(vidi()?)
                .args(["--set", &format!("bus.url={}", rig.broker.url()), "--set"])
                .arg(format!("model.dir={}", checkpoint("untied").display()))
                .args(["stage", stage])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let said = ended(joins).await.with_context(|| format!("stage-{stage} of other weights joins"))?;
            let error = said.lines().find(|l| l.starts_with("error: ")).with_context(|| said.clone())?;
            let names = [format!("{stage}-"), "tied@".to_owned(), "untied@".to_owned()];
            ensure!(names.iter().all(|name| error.contains(name)), "{error}");
        }
        for stage in [StageName::Vision, StageName::Llm] {
            let request = load::long_job(&rig, &format!("mixed-{stage}"), 8192)?;
            client::submit(&rig.bus, &request).await?;
            look::wait_for(&rig, &request.job, |e| matches!(e, Event::Planned { .. })).await?;
            let mut with = headers(&request.job);
            with.insert("Vidi-Checkpoint", "stranger@0123456789abcdef");
            let body = match stage {
                StageName::Llm => strange_tokens(&rig, &request.job).await?,
                // Whatever it is: refused before it is read.
                _ => Bytes::from_static(b"features of another tower"),
            };
            let subject = rig.bus.subjects().input(stage, &request.job);
            rig.bus.client().publish_with_headers(subject, with, body).await?;
            let events = rig.events(&request.job).await?;
            let Event::Failed { error } = terminal(&events)? else { bail!("{:?}", events.last()) };
            ensure!(error.kind == ErrorKind::Model && error.stage == Some(stage), "{error:?}");
            ensure!(error.message.contains("stranger@") && error.message.contains("tied@"), "{error:?}");
        }
        look::result(&rig.answer(&load::long_job(&rig, "after", 8)?).await?).with_context(|| look::tail(&rig))?;
        let injected = "3 stages of another checkpoint started, 2 messages of another one published".to_owned();
        Ok(Seen { injected, observed: "refused by name, later job answered".to_owned(), seconds: None })
    })
    .await
}

/// What a process said that ended with status 6.
async fn ended(mut child: std::process::Child) -> anyhow::Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("it runs for 20 s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(6), "{}: {said}", output.status);
    Ok(said)
}

/// A token of the job, made with other weights.
async fn strange_tokens(rig: &Rig, job: &JobId) -> anyhow::Result<Bytes> {
    let events = look::log_of(&rig.bus, job).await;
    let plan = events.iter().find_map(|e| match &e.event {
        Event::Planned { plan, .. } => Some(plan.clone()),
        _ => None,
    });
    let plan = plan.context("not planned")?;
    let tensor = Tensor::new(Dtype::F32, &[1, 1], Cow::Owned(vec![0; 4]))?;
    let (v, modality) = (wire::VERSION, Modality::Image);
    Ok(wire::encode(&TokenBatch { v, job: job.clone(), plan, modality, offset: 0, tensor }).into())
}
