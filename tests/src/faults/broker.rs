//! Faults of the broker: killed, stopped, restarted with a smaller message limit, out of disk space.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::up::supervisor::RESTARTING;
use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, JobRequest};

use super::load::{self, Load, setup, true_setup};
use super::long_answer::{LongAnswer, SCENE};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::harness::{Rig, Setup, signal};
use crate::media::video;

/// SIGKILL of the broker while jobs are in flight, and a new one on the same files.
pub async fn restarted(scale: &Scale) -> Row {
    let expected = "every job answered truly, as in an undisturbed run, nothing left in the streams";
    let case = Case {
        name: "broker killed and restarted".to_owned(),
        expected,
        bound_s: scale.bound(40.0 + scale.jobs as f64 * 2.0),
    };
    case.run(restarts(scale, true_setup(scale))).await
}

/// The same with frames, sound, features and tokens in the broker's memory: what it had of them is asked for again as soon as it is
/// back, though nobody's patience would end.
pub async fn restarted_without_memory(scale: &Scale) -> Row {
    let expected = "every job answered truly, as in an undisturbed run, nothing left in the streams";
    let case = Case {
        name: "broker killed and restarted, work in its memory".to_owned(),
        expected,
        bound_s: scale.bound(60.0 + scale.jobs as f64 * 2.0),
    };
    let mut setup = true_setup(scale);
    setup.set[1] = "bus.worker_patience_s=600".to_owned();
    setup.set.push("bus.data_storage=memory".to_owned());
    case.run(restarts(scale, setup)).await
}

/// Kills the broker again and again while jobs are in flight.
async fn restarts(scale: &Scale, setup: Setup) -> anyhow::Result<Seen> {
    let mut rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..setup }).await?;
    let load = Load::new(&rig).await?;
    let requests = load.submit(&rig.bus, "restart", scale.jobs).await?;
    let mut dice = Dice::new(scale.seed);
    let rounds = (scale.jobs / 8).clamp(2, 10);
    for _ in 0..rounds {
        tokio::time::sleep(dice.pause(200, 2500)).await;
        rig.restart_broker().await?;
    }
    load.check(&rig, &requests).await?;
    let injected = format!("{rounds} kills of nats-server over {} jobs", scale.jobs);
    Ok(Seen { injected, observed: format!("{} right answers, streams empty", scale.jobs), seconds: None })
}

/// Restart of the broker with a smaller `max_payload` while a job is in flight.
pub async fn smaller_payload(scale: &Scale) -> Row {
    let expected = "the jobs in flight are answered, in smaller messages";
    let case =
        Case { name: "broker restarted with a smaller max_payload".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let mut rig = Rig::start(Setup { max_payload: 8 << 20, ..true_setup(scale) }).await?;
        let load = Load::long(&rig, 20).await?;
        let requests = load.submit(&rig.bus, "payload", 3).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.restart_broker_with(1 << 20).await?;
        load.check(&rig, &requests).await?;
        let injected = "restart with 1 MiB instead of 8 MiB over 3 jobs".to_owned();
        Ok(Seen { injected, observed: "3 right answers".to_owned(), seconds: None })
    })
    .await
}

/// SIGSTOP of the broker for 15 s.
pub async fn paused(scale: &Scale) -> Row {
    let expected = "every job answered truly, as in an undisturbed run; all stages there without a restart";
    // From then on nats-server 2.9.10 forgets frames in its queue now and then, each of which is missed after six seconds.
    let job_s = if scale.broker.is_some() { 1.5 } else { 1.0 };
    let bound_s = scale.bound(45.0 + scale.jobs as f64 * job_s);
    let case = Case { name: "broker stopped for 15 s".to_owned(), expected, bound_s };
    case.run(async {
        let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) }).await?;
        let load = Load::new(&rig).await?;
        let requests = load.submit(&rig.bus, "pause", scale.jobs).await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let pid = rig.broker.pid().context("broker is gone")?;
        signal(pid, "STOP")?;
        tokio::time::sleep(Duration::from_secs(15)).await;
        signal(pid, "CONT")?;
        load.check(&rig, &requests).await?;
        let restarts = rig.log().matches(RESTARTING).count();
        ensure!(restarts == 0, "{restarts} stages had to be started again");
        let injected = format!("SIGSTOP for 15 s over {} jobs", scale.jobs);
        Ok(Seen { injected, observed: format!("{} right answers", scale.jobs), seconds: None })
    })
    .await
}

/// SIGSTOP of the broker for 6 s in the middle of a long answer: longer than a publish waits for its acknowledgement, so
/// that pieces of text are sent again which the broker has stored.
pub async fn paused_in_an_answer(scale: &Scale) -> Row {
    let rounds = (scale.jobs / 5).clamp(3, 40);
    let expected = "one end each, every piece of text once and where it says that it stands";
    let name = "broker stopped for 6 s in the middle of an answer".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(20.0 + rounds as f64 * 20.0) };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        let clip = rig.media().join("answer.mp4");
        video(&clip, 2)?;
        let mut dice = Dice::new(scale.seed);
        for round in 0..rounds {
            let job = JobId::new(format!("answer-{round}"))?;
            let request = JobRequest { max_new_tokens: 1500, ..JobRequest::new(job, clip.to_string_lossy(), "a dog") };
            let events = stopped_in_text(&rig, &request, &mut dice).await?;
            let got = look::result(&events).with_context(|| look::tail(&rig))?;
            look::told_once(&events, &got.text).with_context(|| format!("{}; {}", request.job, look::tail(&rig)))?;
        }
        look::empty(&rig).await?;
        let injected = format!("SIGSTOP for 6 s in each of {rounds} answers of 1,500 tokens");
        Ok(Seen { injected, observed: format!("{rounds} answers, text told once"), seconds: None })
    })
    .await
}

/// Submits a job, and stops the broker for 6 s soon after its first text; all that stands in its log in the end.
async fn stopped_in_text(rig: &Rig, request: &JobRequest, dice: &mut Dice) -> anyhow::Result<Vec<JobEvent>> {
    let broker = rig.broker.pid().context("broker is gone")?;
    load::submit(&rig.bus, request).await?;
    look::wait_for(rig, &request.job, |e| matches!(e, Event::Text { .. })).await?;
    tokio::time::sleep(dice.pause(20, 800)).await;
    signal(broker, "STOP")?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    signal(broker, "CONT")?;
    rig.events(&request.job).await?;
    Ok(look::log_of(&rig.bus, &request.job).await)
}

/// The same in the middle of many short answers, whose truth is known.
pub async fn paused_in_true_answers(scale: &Scale) -> Row {
    let rounds = (scale.jobs / 5).clamp(2, 20);
    let expected = "one end each, true answers, every piece of text once and where it says that it stands";
    let name = "broker stopped for 6 s in the middle of true answers".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(20.0 + rounds as f64 * 20.0) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let (video, truth) = rig.demo_video(SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&rig.bus, &video, &truth).await.with_context(|| look::tail(&rig))?;
        let mut dice = Dice::new(scale.seed);
        for round in 0..rounds {
            let request = long.request(&format!("answer-{round}"))?;
            let events = stopped_in_text(&rig, &request, &mut dice).await?;
            long.check(&events).with_context(|| format!("{}; {}", request.job, look::tail(&rig)))?;
        }
        look::empty(&rig).await?;
        let injected = format!("SIGSTOP for 6 s in each of {rounds} jobs of 64 answers, {} tokens", long.tokens());
        Ok(Seen { injected, observed: format!("{rounds} true answers, text told once"), seconds: None })
    })
    .await
}

/// Full disk of the broker while jobs are in flight; once there is space again the broker is restarted, since nats-server
/// disables its streams for good when a write fails.
pub async fn disk_full(scale: &Scale) -> Row {
    let expected = "no stage dies; once there is space every job is answered as in an undisturbed run";
    let case = Case { name: "disk of the broker full".to_owned(), expected, bound_s: scale.bound(100.0) };
    case.run(async {
        let Some(disk) = Disk::mount(96)? else {
            let observed = "not run: mounting a tmpfs is not permitted".to_owned();
            return Ok(Seen { injected: "nothing".to_owned(), observed, seconds: Some(0.0) });
        };
        let promised = Some(64 << 30);
        let dir = tempfile::tempdir_in(disk.path())?;
        let setup = Setup { replicas: "llm=2".to_owned(), max_file_store: promised, ..true_setup(scale) };
        let mut rig = Rig::start_in(dir, setup).await?;
        let load = Load::new(&rig).await?;
        let long = Load::long(&rig, 30).await?;
        let filler = disk.path().join("filler");
        let spare = std::fs::File::create(&filler)?;
        fill(&spare)?;
        // A job that is submitted while there is no space, if the broker takes it.
        let request = long.request("full", 0);
        let submitted = tokio::time::timeout(Duration::from_secs(6), load::submit(&rig.bus, &request)).await;
        let taken = matches!(submitted, Ok(Ok(())));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let restarts = rig.log().matches(RESTARTING).count();
        drop(spare);
        std::fs::remove_file(&filler)?;
        let freed = Instant::now();
        rig.restart_broker().await?;
        // The same id is the same job.
        load::submit(&rig.bus, &request).await?;
        long.check(&rig, &[request]).await?;
        let requests = load.submit(&rig.bus, "room", 5).await?;
        load.check(&rig, &requests).await?;
        ensure!(restarts == 0, "{restarts} stages died; {}", look::tail(&rig));
        let injected = format!("a 96 MiB disk filled to the last byte (job taken meanwhile: {taken}), then freed");
        let observed = format!("all answered {:.1} s after there was space", freed.elapsed().as_secs_f64());
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

fn fill(mut file: &std::fs::File) -> anyhow::Result<()> {
    use std::io::Write;
    let block = vec![1u8; 64 << 10];
    for size in [64 << 10, 4 << 10, 1] {
        while file.write_all(&block[..size]).is_ok() {}
    }
    Ok(())
}
