//! Faults of messages: malformed, duplicate, out of order, refused and lost ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use deploy::client;
use futures::StreamExt;
use protocol::control::Verb;
use protocol::error::{ErrorKind, StageName};
use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use runtime::bus::Bus;
use runtime::subject::StreamName;

use super::load::{self, Load, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup, signal, terminal};

/// Header of messages that this suite has sent again.
const AGAIN: &str = "Vidi-Again";

/// Time between one neighbour's answer and the next one's question, well below the patience: without it they keep every core busy
/// until that ends.
const BETWEEN_NEIGHBOURS: Duration = Duration::from_secs(1);

/// Bodies that are not valid messages.
fn garbage(dice: &mut Dice) -> Vec<Bytes> {
    let random: Vec<u8> = (0..4096).map(|_| dice.below(256) as u8).collect();
    let deep = vec![0x91; 100_000];
    // Headers of a map, array, string and byte string of 4 GiB, without content.
    let huge = [0xdf, 0xdd, 0xdb, 0xc6].map(|m| vec![m, 0xff, 0xff, 0xff, 0xff]);
    let json: Vec<&[u8]> = vec![b"{", b"{\"v\":1}", b"{\"v\":99,\"job\":\"x\"}", b"{\"job\":7}", b"null", b""];
    [random, deep, vec![0xc1; 10]]
        .into_iter()
        .chain(huge)
        .chain(json.into_iter().map(<[u8]>::to_vec))
        .map(Bytes::from)
        .collect()
}

/// Malformed messages on every subject, for a job in flight and for an unknown one.
pub async fn poison(scale: &Scale) -> Row {
    let expected = "no stage dies or grows by 64 MiB; messages of no job in flight change nothing; other jobs answered";
    let case = Case { name: "garbage on every subject".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let load = Load::new(&rig).await?;
        load.warm_up(&rig).await?;
        let before: BTreeMap<u32, u64> =
            StageName::ALL.iter().flat_map(|&s| rig.pids(s)).map(|pid| (pid, look::resident(pid))).collect();
        let requests = load.submit(&rig.bus, "poison", scale.jobs.min(20)).await?;
        let subjects = rig.bus.subjects();
        let stranger = JobId::new("stranger")?;
        // Anyone who may publish there can write to the control and event subjects of this job; its result must not change.
        let victim = &requests[0].job;
        let mut targets = vec![
            subjects.jobs(),
            subjects.waiting(5, &stranger),
            subjects.probe(),
            subjects.capacity(),
            subjects.reports(victim),
            subjects.owner(victim),
            subjects.tokens(victim),
            subjects.events(victim),
            subjects.events(&stranger),
        ];
        targets.extend(StageName::ALL.map(|s| subjects.input(s, &stranger)));
        targets.extend([Verb::Cancel, Verb::Drain, Verb::Load].map(|v| subjects.control(v)));
        targets.push(subjects.all_control().replace('*', "nonsense"));
        let mut dice = Dice::new(scale.seed);
        let bodies = garbage(&mut dice);
        let mut sent = 0;
        for body in &bodies {
            for target in &targets {
                rig.bus.client().publish(target.clone(), body.clone()).await?;
                sent += 1;
            }
        }
        rig.bus.client().flush().await?;
        load.check(&rig, &requests).await?;
        for (pid, was) in &before {
            let now = look::resident(*pid);
            ensure!(now > 0, "process {pid} died; {}", look::tail(&rig));
            ensure!(now < was + (64 << 20), "process {pid} grew from {was} to {now} bytes");
        }
        let mut counted = 0;
        for stage in StageName::ALL {
            counted += client::status(&rig.bus, stage).await?.iter().map(|s| s.unreadable).sum::<u64>();
        }
        ensure!(counted as usize * 2 > sent, "{counted} of {sent} messages counted as unreadable");
        let injected = format!("{sent} messages on {} subjects", targets.len());
        Ok(Seen {
            injected,
            observed: format!("{} right answers; {counted} counted unreadable", requests.len()),
            seconds: None,
        })
    })
    .await
}

/// Malformed message for a job in flight, in the queue of each stage.
pub async fn poison_of_a_job(scale: &Scale) -> Row {
    let expected = "that job fails as poison_message naming the stage, the message is kept in VIDI_DEAD, its neighbour is answered";
    let case = Case { name: "a poison message in each queue".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) }).await?;
        let load = Load::new(&rig).await?;
        let long = load::long_video(&rig, 20)?;
        for stage in [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse] {
            let mut request = JobRequest::new(JobId::new(format!("victim-{stage}"))?, long.to_string_lossy(), "a dog");
            request.max_new_tokens = 4000;
            client::submit(&rig.bus, &request).await?;
            look::wait_for(&rig, &request.job, |e| matches!(e, Event::Planned { .. })).await?;
            let neighbour = load.submit(&rig.bus, &format!("neighbour-{stage}"), 1).await?;
            let subject = rig.bus.subjects().input(stage, &request.job);
            rig.bus.client().publish(subject, Bytes::from_static(&[0xc1, 0xc1])).await?;
            rig.events(&request.job).await?;
            let events = look::log_of(&rig.bus, &request.job).await;
            let Event::Failed { error } = terminal(&events)? else { bail!("{stage}: {:?}", terminal(&events)?) };
            ensure!(error.kind == ErrorKind::PoisonMessage && error.stage == Some(stage), "{error:?}");
            let kept = look::dead(&rig.bus).await?;
            ensure!(kept.iter().any(|s| s.ends_with(&format!("{stage}.{}", request.job))), "not kept: {kept:?}");
            load.check(&rig, &neighbour).await?;
        }
        let injected = "bytes that are no MessagePack to decode, vision, audio and fuse".to_owned();
        Ok(Seen { injected, observed: "4 failed by name, 4 kept, 4 neighbours answered".to_owned(), seconds: None })
    })
    .await
}

/// Terminal event that the stream refuses, as from an owner that has lost its job: a plain subscriber receives it, and the
/// job goes on.
pub async fn refused_end(scale: &Scale) -> Row {
    let expected = "the job goes on to the answer of an undisturbed run, its one terminal event";
    let case = Case { name: "a refused terminal event".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let load = Load::long(&rig, 20).await?;
        let other = load.submit(&rig.bus, "other", 1).await?;
        let end = rig.events(&other[0].job).await?.last().context("no events")?.clone();
        let request = load.request("refused", 0);
        client::submit(&rig.bus, &request).await?;
        look::wait_for(&rig, &request.job, |e| matches!(e, Event::Planned { .. })).await?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "1000000");
        let body = Bytes::from(wire::encode(&JobEvent { job: request.job.clone(), ..end }));
        let subject = rig.bus.subjects().events(&request.job);
        rig.bus.client().publish_with_headers(subject, headers, body).await?;
        rig.bus.client().flush().await?;
        load.check(&rig, &[request]).await?;
        let injected = "a result with a wrong expected sequence".to_owned();
        Ok(Seen { injected, observed: "right answer, one end".to_owned(), seconds: None })
    })
    .await
}

/// Duplicates of every message between stages, and of every job.
pub async fn duplicates(scale: &Scale) -> Row {
    let expected = "every job answered as in an undisturbed run, one terminal event each, nothing left in the streams";
    let case = Case {
        name: "duplicates of every message".to_owned(),
        expected,
        bound_s: scale.bound(30.0 + scale.jobs as f64 * 2.0),
    };
    case.run(async {
        let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) }).await?;
        let load = Load::new(&rig).await?;
        let echo = tokio::spawn(echo(rig.bus.clone()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let jobs = scale.jobs.min(50);
        let requests = load.submit(&rig.bus, "twice", jobs).await?;
        load.check(&rig, &requests).await?;
        let repeated = rig.bus.client().statistics().out_messages.load(std::sync::atomic::Ordering::Relaxed);
        echo.abort();
        let injected = format!(
            "jobs, decode requests, frames, sound, features and tokens of {jobs} jobs sent again ({repeated} messages)"
        );
        Ok(Seen { injected, observed: format!("{jobs} right answers, streams empty"), seconds: None })
    })
    .await
}

/// Sends every message again, without the message id by which the broker would recognize it.
async fn echo(bus: Bus) -> anyhow::Result<()> {
    let subjects = bus.subjects();
    let mut heard = vec![subjects.jobs(), format!("{}.*.*", subjects.jobs())];
    heard.extend(StageName::ALL.map(|s| subjects.all_input(s)));
    let mut streams = Vec::new();
    for subject in heard {
        streams.push(bus.client().subscribe(subject).await?);
    }
    let mut all = futures::stream::select_all(streams);
    while let Some(message) = all.next().await {
        let mut headers = message.headers.clone().unwrap_or_default();
        if headers.get(AGAIN).is_some() {
            continue;
        }
        let mut again = async_nats::HeaderMap::new();
        for (name, values) in headers.iter().filter(|(n, _)| n.to_string() != "Nats-Msg-Id") {
            for value in values {
                again.append(name.clone(), value.clone());
            }
        }
        again.insert(AGAIN, "1");
        headers = again;
        bus.client().publish_with_headers(message.subject, headers, message.payload).await?;
    }
    Ok(())
}

/// Messages of every queue removed while their stage is stopped, and put back in another order.
pub async fn out_of_order(scale: &Scale) -> Row {
    let expected = "the answer of an undisturbed run";
    let case = Case { name: "out of order".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let mut setup = true_setup(scale);
        // Small messages, so that there are many to reorder.
        setup.set.extend(["bus.message_bytes=65536".to_owned(), "decode.batch_frames=1".to_owned()]);
        setup.set[0] = "bus.ack_wait_s=20".to_owned();
        setup.max_payload = 2 << 20;
        // A frame is larger and cannot be split: the message size is that of a frame.
        setup.set[2] = "bus.message_bytes=1100000".to_owned();
        let rig = Rig::start(setup).await?;
        let load = Load::long(&rig, 40).await?;
        let mut dice = Dice::new(scale.seed);
        let request = load.request("shuffled", 0);
        let stages = [StageName::Vision, StageName::Audio, StageName::Fuse];
        let pids: BTreeMap<StageName, u32> = stages.iter().filter_map(|&s| Some((s, *rig.pids(s).first()?))).collect();
        for pid in pids.values() {
            signal(*pid, "STOP")?;
        }
        client::submit(&rig.bus, &request).await?;
        let mut moved = BTreeMap::new();
        for stage in stages {
            settle(&rig, stage, &request.job).await?;
            moved.insert(stage.as_str(), shuffle(&rig.bus, stage, &request.job, &mut dice).await?);
            signal(pids[&stage], "CONT")?;
        }
        load.check(&rig, &[request]).await?;
        ensure!(moved["vision"] > 10 && moved["fuse"] > 3, "too few messages to reorder: {moved:?}");
        look::empty(&rig).await?;
        let injected = format!("queues put in random order: {moved:?} messages").replace('"', "");
        Ok(Seen { injected, observed: "right answer".to_owned(), seconds: None })
    })
    .await
}

/// Loss of a job's last message from each queue in turn, as from a broker that was killed before the write to disk but
/// still knows the message id. Neighbours keep every stage busy meanwhile.
pub async fn lost(scale: &Scale) -> Row {
    let expected = "what is missing is asked for again once patience has ended; the answer of an undisturbed run, and the neighbours'";
    let case = Case { name: "a message lost from each queue".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let mut setup = Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) };
        setup.set[1] = "bus.worker_patience_s=4".to_owned();
        let rig = Rig::start(setup).await?;
        let load = Load::new(&rig).await?;
        // Two windows of audio: a stopped stage may have received the first one already.
        let long = Load::long(&rig, 40).await?;
        let mut neighbours = 0;
        for stage in [StageName::Vision, StageName::Audio, StageName::Fuse] {
            let pid = *rig.pids(stage).first().context("no such stage")?;
            let request = long.request(&format!("lost-{stage}"), 0);
            signal(pid, "STOP")?;
            client::submit(&rig.bus, &request).await?;
            settle(&rig, stage, &request.job).await?;
            lose_last(&rig.bus, stage, &request.job).await?;
            signal(pid, "CONT")?;
            let busy = async {
                loop {
                    neighbours += 1;
                    let neighbour = load.request(&format!("neighbour-{neighbours}"), 0);
                    rig.answer(&neighbour).await?;
                    load.check_answer(&rig, &neighbour).await?;
                    tokio::time::sleep(BETWEEN_NEIGHBOURS).await;
                }
            };
            tokio::select! {
                ended = rig.events(&request.job) => ended.map(drop)?,
                broken = busy => return broken,
            }
            long.check_answer(&rig, &request).await.with_context(|| look::tail(&rig))?;
        }
        let again = rig.log().matches("what is missing is asked for again").count();
        ensure!(again >= 3, "asked again {again} times, not 3; {}", look::tail(&rig));
        look::empty(&rig).await?;
        let injected = "the last message of vision's, audio's and fuse's queue deleted".to_owned();
        Ok(Seen { injected, observed: format!("3 right answers, and {neighbours} neighbours'"), seconds: None })
    })
    .await
}

/// Deletes a job's last message from a queue.
async fn lose_last(bus: &Bus, stage: StageName, job: &JobId) -> anyhow::Result<()> {
    let (name, subject) = (StreamName::input_of(stage), bus.subjects().input(stage, job));
    let stream = bus.stream(name).await;
    let last = stream.get_last_raw_message_by_subject(&subject).await?;
    let first = bus.first_from(name, &subject, 1).await.context("nothing in the queue")?;
    ensure!(first.sequence < last.sequence, "only one message in the queue of {stage}");
    stream.delete_message(last.sequence).await?;
    Ok(())
}

/// Waits until a job has several messages in a stage's queue, and the queue does not grow any more.
async fn settle(rig: &Rig, stage: StageName, job: &JobId) -> anyhow::Result<()> {
    let (name, subject) = (StreamName::input_of(stage), rig.bus.subjects().input(stage, job));
    let stream = rig.bus.stream(name).await;
    let until = Instant::now() + Duration::from_secs(30);
    let mut last = (u64::MAX, Instant::now());
    loop {
        let now = stream.get_info().await?.state.last_sequence;
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > Duration::from_millis(1200) {
            // It does not grow either before the first one has come.
            let (first, last) = (rig.bus.first_from(name, &subject, 1).await, rig.bus.last_on(name, &subject).await);
            if first.zip(last).is_some_and(|(first, last)| first.sequence < last.sequence) {
                return Ok(());
            }
        }
        ensure!(Instant::now() < until, "{job} has no messages in the queue of {stage}, or it still grows after 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removes a job's messages from a queue and puts them back in random order.
async fn shuffle(bus: &Bus, stage: StageName, job: &JobId, dice: &mut Dice) -> anyhow::Result<usize> {
    let name = StreamName::input_of(stage);
    let subject = bus.subjects().input(stage, job);
    let stream = bus.stream(name).await;
    let mut taken = Vec::new();
    let mut from = 1;
    while let Some(message) = bus.first_from(name, &subject, from).await {
        from = message.sequence + 1;
        if stream.delete_message(message.sequence).await.is_ok() {
            taken.push(message.payload);
        }
    }
    let js = async_nats::jetstream::new(bus.client().clone());
    let n = taken.len();
    while !taken.is_empty() {
        let body = taken.swap_remove(dice.below(taken.len()));
        js.publish(subject.clone(), body).await?.await?;
    }
    Ok(n)
}
