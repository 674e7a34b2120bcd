//! More probes than a stage can look at.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use protocol::error::{ErrorKind, StageName};
use protocol::message::{JobId, JobRequest, ProbeReply, ProbeRequest};
use protocol::wire;

use super::load::{self, setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::harness::Rig;

/// Hundreds of probes at once, of one file and of many.
pub async fn probes(scale: &Scale) -> Row {
    let expected = "each is answered, with the facts or as busy, by at most 64 threads; a job meanwhile is answered";
    let case = Case { name: "400 probes at once".to_owned(), expected, bound_s: scale.bound(20.0) };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        let clip = load::long_video(&rig, 120)?;
        let mut videos = vec![clip.clone(); 200];
        for i in 0..200 {
            let other = rig.media().join(format!("other-{i}.mp4"));
            std::fs::hard_link(&clip, &other)?;
            videos.push(other);
        }
        let pid = *rig.pids(StageName::Decode).first().context("no stage-decode")?;
        let threads = look::most_threads(pid);
        let started = Instant::now();
        let asked = videos.iter().map(|video| {
            let request = ProbeRequest::new(video.to_string_lossy());
            let request = async_nats::Request::new().payload(wire::encode(&request).into());
            rig.bus.client().send_request(rig.bus.subjects().probe(), request.timeout(Some(Duration::from_secs(60))))
        });
        let job = JobRequest {
            max_new_tokens: 4,
            ..JobRequest::new(JobId::new("meanwhile")?, clip.to_string_lossy(), "a dog")
        };
        let (answers, events) = tokio::join!(futures::future::join_all(asked), rig.answer(&job));
        let took = started.elapsed();
        look::result(&events?).with_context(|| look::tail(&rig))?;
        let (mut facts, mut busy, mut silent) = (0, 0, 0);
        for answer in answers {
            match answer.map(|message| wire::decode_any::<ProbeReply>(&message.payload)) {
                Ok(Ok(ProbeReply::Info(_))) => facts += 1,
                Ok(Ok(ProbeReply::Refused { error })) if error.kind == ErrorKind::Busy => busy += 1,
                Ok(other) => bail!("{other:?}"),
                Err(_) => silent += 1,
            }
        }
        let threads = threads.await?;
        let observed = format!("{facts} facts, {busy} busy, {silent} unanswered, {threads} threads");
        ensure!(silent == 0 && facts >= 200 && threads <= 64, "{observed}");
        let injected = "200 probes of one file, and one each of 200 others".to_owned();
        Ok(Seen { injected, observed, seconds: Some(took.as_secs_f64()) })
    })
    .await
}
