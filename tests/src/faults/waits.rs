//! What many jobs in line cost while they wait.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::subject::StreamName;

use super::load::{self, setup};
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, signal};

/// Time for which readings of the queue are counted.
const READ_FOR: Duration = Duration::from_secs(12);

/// Many jobs that wait for long: what they cost meanwhile.
pub async fn waiting(scale: &Scale) -> Row {
    let expected = "the queue of waiting jobs is read at most 40 times a second, however many wait";
    let case = Case { name: "hundreds of jobs that wait".to_owned(), expected, bound_s: scale.bound(90.0) };
    case.run(async {
        let mut setup = setup(scale);
        setup.set.push("bus.worker_patience_s=600".to_owned());
        let rig = Rig::start(setup).await?;
        let clip = load::long_video(&rig, 3)?;
        let ask = |name: &str| -> anyhow::Result<JobRequest> {
            let job = JobRequest::new(JobId::new(name)?, clip.to_string_lossy(), "a dog");
            Ok(JobRequest { max_new_tokens: 1, deadline_s: Some(3600.0), ..job })
        };
        // One job holds the only owner without work: all the machine is there for what waiting costs.
        let vision = *rig.pids(StageName::Vision).first().context("no stage-vision")?;
        signal(vision, "STOP")?;
        client::submit(&rig.bus, &JobRequest { priority: 9, ..ask("first")? }).await?;
        load::wait_for(&rig, &JobId::new("first")?, |e| matches!(e, Event::Planned { .. })).await?;
        let (mut reads, jobs) = (0, 400);
        for i in 0..jobs {
            client::submit(&rig.bus, &ask(&format!("waits-{i}"))?).await?;
        }
        load::wait_for(&rig, &JobId::new(format!("waits-{}", jobs - 1))?, |e| matches!(e, Event::Queued { .. }))
            .await?;
        let mut read = rig.bus.client().subscribe("$JS.API.STREAM.MSG.GET.VIDI_LINE").await?;
        rig.bus.client().flush().await?;
        let since = Instant::now();
        while since.elapsed() < READ_FOR {
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(100), read.next()).await {
                reads += 1;
            }
        }
        let left = rig.bus.stream(StreamName::Line).await.get_info().await?.state.messages;
        signal(vision, "CONT")?;
        let observed = format!("read {reads} times in {} s; {left} of {jobs} still wait", READ_FOR.as_secs());
        ensure!(left > 50, "{observed}: too few waited");
        ensure!(reads <= 40 * READ_FOR.as_secs(), "{observed}");
        Ok(Seen { injected: format!("{jobs} jobs with a deadline of an hour"), observed, seconds: None })
    })
    .await
}
