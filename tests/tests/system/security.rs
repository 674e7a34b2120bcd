//! Tests of the shipped broker configuration: every role can do its work, and nothing else.
//!
//! In reading order: this file (what must work, and what is refused with a word), `raw` (a connection that sends whatever
//! it likes), `reach` (which subjects each user reaches, itself or by the broker and the stages).

mod raw;
mod reach;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use deploy::client;
use deploy::up::broker::{self, Broker};
use futures::StreamExt;
use protocol::error::{ErrorKind, StageName};
use protocol::event::{CancelledBy, Event};
use protocol::message::{JobId, JobRequest};
use runtime::bus::{Bus, Role, headers};
use runtime::subject::StreamName;
use tests::faults::look;
use tests::harness::{Rig, brokers, terminal, vidi};
use tests::media::video;
use tests::own::Place;
use tests::shipped::Shipped;
use tokio::sync::mpsc;

/// Longest time until the broker reports a violation.
const SAYS: Duration = Duration::from_secs(30);

fn request(job: &str, video: &std::path::Path) -> anyhow::Result<JobRequest> {
    Ok(JobRequest { max_new_tokens: 8, ..JobRequest::new(JobId::new(job)?, video.to_string_lossy(), "a dog") })
}

/// Violations of permissions in the broker's log.
fn violations(rig: &Rig) -> Vec<String> {
    rig.broker.log().lines().filter(|l| l.contains("Violation")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_does_its_work_under_the_shipped_configuration_without_asking_for_more() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let rig = Rig::start(shipped.setup(program.as_deref())).await?;
        let clip = rig.media().join("clip.mp4");
        video(&clip, 5)?;

        let events =
            rig.answer(&request("answered", &clip)?).await.with_context(|| format!("{:?}", violations(&rig)))?;
        ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}");
        let missing = request("missing", &rig.media().join("nothing.mp4"))?;
        let events = rig.answer(&missing).await?;
        let Event::Failed { error } = terminal(&events)? else { anyhow::bail!("{events:?}") };
        ensure!(error.kind == ErrorKind::MediaNotFound, "{error:?}");

        // Cancelled in the middle of its answer, so that every stage clears up.
        let endless = JobRequest { max_new_tokens: 4096, ..request("cancelled", &clip)? };
        client::submit(&rig.bus, &endless).await?;
        let mut heard = client::Events::new(&rig.bus, &endless.job);
        while !matches!(heard.next().await?.event, Event::Text { .. }) {}
        let cancelled = rig.run(&["cancel", "cancelled"])?;
        ensure!(cancelled.status.success(), "{cancelled:?}");
        let events = rig.events(&endless.job).await?;
        ensure!(matches!(terminal(&events)?, Event::Cancelled { by: CancelledBy::Client, .. }), "{events:?}");

        // A message that no stage can use: buried, and its job failed by the stage that met it.
        let operator = Bus::connect(rig.bus.config(), Role::Operator, SAYS).await?;
        for stage in [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse] {
            let endless = JobRequest { max_new_tokens: 4096, ..request(&format!("poisoned-{stage}"), &clip)? };
            client::submit(&rig.bus, &endless).await?;
            let mut heard = client::Events::new(&rig.bus, &endless.job);
            while !matches!(heard.next().await?.event, Event::Text { .. }) {}
            let subject = operator.subjects().input(stage, &endless.job);
            let js = jetstream::new(operator.client().clone());
            js.publish_with_headers(subject, headers(&endless.job), "no message".into()).await?.await?;
            let events = rig.events(&endless.job).await?;
            let Event::Failed { error } = terminal(&events)? else { anyhow::bail!("{events:?}") };
            ensure!(error.kind == ErrorKind::PoisonMessage && error.stage == Some(stage), "{error:?}");
        }
        let status = rig.run(&["status", "--json"])?;
        ensure!(String::from_utf8_lossy(&status.stdout).lines().count() == 5, "{status:?}");

        let refused = violations(&rig);
        ensure!(refused.is_empty(), "{program:?}: {refused:#?}");
    }
    Ok(())
}

/// Runs a stage, which is expected to end by itself.
fn stage(shipped: &Shipped, url: &str, set: &[String]) -> anyhow::Result<Output> {
    Ok(Command::new(vidi()?)
        .args(shipped.settings().iter().flat_map(|s| ["--set", s]))
        .args(set.iter().flat_map(|s| ["--set", s]))
        .args(["--set", &format!("bus.url={url}"), "stage", "vision"])
        .stdin(Stdio::null())
        .output()?)
}

/// Checks that it ended with status 4 and an error with these words.
fn refused(output: &Output, words: &[&str]) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{}: {said}", output.status);
    for word in words {
        ensure!(said.lines().any(|l| l.starts_with("error: ") && l.contains(word)), "no {word:?} in {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_end_a_stage_with_status_4_and_say_whose_they_are_and_what_to_do() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program.as_deref()).await?;
        let wrong = shipped.file("vision.wrong");
        std::fs::write(&wrong, "not the password\n")?;
        let wrong = wrong.display().to_string();
        let output = stage(&shipped, broker.url(), &[format!("bus.password_file={wrong}")])?;
        refused(&output, &["user \"vision\"", broker.url(), &wrong, "deploy/users.conf"])?;

        let nowhere = shipped.file("nowhere/{stage}.password").display().to_string();
        let output = stage(&shipped, broker.url(), &[format!("bus.password_file={nowhere}")])?;
        refused(&output, &["bus.password_file", "nowhere/vision.password"])?;

        let output = stage(&shipped, broker.url(), &["bus.user=".to_owned()])?;
        refused(&output, &["without credentials", broker.url()])?;

        // A supervisor whose stage is refused says so too, instead of starting it for ever.
        std::fs::write(shipped.file("vision.password"), "not the password\n")?;
        let up = Command::new(vidi()?)
            .env("VIDI_STATE", shipped.file("state"))
            .args(shipped.settings().iter().flat_map(|s| ["--set", s]))
            .args(["--set", &format!("bus.url={}", broker.url()), "up", "--model"])
            .arg(tests::harness::checkpoint("tied"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        refused(&up, &["vision"])?;
    }
    Ok(())
}

/// What a user of a password in `bus.url` would look at, and what stays on disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_the_address_lets_everybody_in_and_is_shown_nowhere() -> anyhow::Result<()> {
    const PASSWORD: &str = "geheim-4711";
    for program in brokers() {
        let place = Place::new(None)?;
        let dir = place.media().join("broker");
        std::fs::create_dir(&dir)?;
        let config = dir.join("users.conf");
        let text = format!("host: 127.0.0.1\nmax_payload: 1MB\njetstream {{ store_dir: {dir:?} }}\n");
        let users = format!("authorization {{ user: \"somebody\", password: \"{PASSWORD}\" }}\n");
        std::fs::write(&config, text + &users)?;
        let options = broker::Options { program, config: Some(config), ..broker::Options::default() };
        let broker = Broker::start(&dir, &options).await?;
        let at = |user: &str| format!("bus.url={}", broker.url().replace("nats://", &format!("nats://{user}@")));
        let right = at(&format!("somebody:{PASSWORD}"));
        let clip = place.media().join("clip.mp4");
        video(&clip, 2)?;
        let clip = clip.to_string_lossy().into_owned();
        let hidden = |what: &str, text: &str| {
            ensure!(!text.contains("geheim"), "{what} shows the password: {text}");
            Ok(())
        };
        // With all that it and the client library have to say.
        let log = ["--set", "log.filter=trace"];
        let mut up = place.up("up", &[&["--set", &right][..], &log].concat())?;
        let since = std::time::Instant::now();
        while !up.log().contains("ready: broker") {
            ensure!(since.elapsed() < 4 * SAYS && up.runs()?, "{}", up.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let run = |args: &[&str], status: i32| -> anyhow::Result<()> {
            let output = place.command(args)?.output()?;
            let said = format!("{output:?}");
            ensure!(output.status.code() == Some(status), "{args:?}: {said}");
            hidden(args[0], &said)
        };
        if let Err(failed) = run(&["ask", &clip, "a dog", "--max-new-tokens", "8", "--set", &right], 0) {
            let untraced = |line: &&str| !line.contains("TRACE") && !line.contains("DEBUG");
            let log: Vec<String> = up.log().lines().filter(untraced).map(str::to_owned).collect();
            let bus = config::Config::load(None, [], &[right]).map_err(anyhow::Error::msg)?.bus;
            let queues = look::queues(&Bus::connect(&bus, Role::Operator, SAYS).await?).await;
            anyhow::bail!("{failed:#}; {queues}; {log:#?}");
        }
        run(&[&["status", "--set", &right][..], &log].concat(), 0)?;
        run(&["config", "print", "--set", &right], 0)?;
        run(&["config", "print", "--set", "bus.user=somebody", "--set", &format!("bus.password={PASSWORD}")], 0)?;
        run(&["status", "--set", &at("somebody:geheim-wrong")], 4)?;
        run(&["status", "--set", "bus.url=nats://somebody:geheim@127.0.0.1:9"], 5)?;
        run(&["status", "--set", "bus.url=nats://somebody:geheim@here:port"], 2)?;
        run(&["status", "--set", "bus.url=nats://somebody:geheim/,@@here:port"], 2)?;
        run(&["status", "--set", &right, "--set", "bus.user=somebody"], 2)?;
        run(&["status", "--set", "url=nats://somebody:geheim@here"], 2)?;
        // Who names no broker finds it by the note, and has to have credentials of his own.
        run(&["status"], 4)?;
        run(&["status", "--set", "bus.user=somebody", "--set", &format!("bus.password={PASSWORD}")], 0)?;

        let note = std::fs::read_to_string(place.state().join("up.json"))?;
        hidden("up.json", &note)?;
        for file in std::fs::read_dir(place.state())? {
            let file = file?;
            let mode = file.metadata()?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{:?} has mode {mode:o}", file.path());
        }
        let log = up.log();
        up.stop()?;
        hidden("the log", &log)?;
        ensure!(log.contains("TRACE") && log.contains("(hidden)@"), "{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vision_user_can_neither_submit_jobs_nor_read_tokens() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program.as_deref()).await?;
        let operator = Bus::connect(&shipped.bus(&broker)?, Role::Operator, SAYS).await?;
        operator.ensure_streams().await?;
        let secret = JobId::new("secret")?;
        let js = jetstream::new(operator.client().clone());
        js.publish(operator.subjects().tokens(&secret), "tokens of somebody's video".into()).await?.await?;

        let (said, mut hears) = mpsc::unbounded_channel();
        let vision = async_nats::ConnectOptions::new()
            .user_and_password("vision".to_owned(), shipped.password("vision")?)
            .custom_inbox_prefix("_INBOX.vision")
            .event_callback(move |event| {
                // The test may be over.
                let _ = said.send(event.to_string());
                async {}
            })
            .connect(broker.url())
            .await?;
        // What it may do is done without a word; the broker answers in order, so the words below are about what follows.
        vision.publish("vidi.v1.features.own", "x".into()).await?;
        vision.flush().await?;
        let mut expect = async |what: &str| -> anyhow::Result<()> {
            loop {
                let event =
                    tokio::time::timeout(SAYS, hears.recv()).await.with_context(|| format!("{what} is let through"))?;
                let event = event.context("the connection is gone")?;
                if event.to_lowercase().contains("permissions violation") {
                    ensure!(event.contains(what), "{event:?} instead of {what}");
                    return Ok(());
                }
            }
        };
        vision.publish("vidi.v1.jobs", "{\"job\": \"forged\", \"video\": \"x\"}".into()).await?;
        expect("Publish to \"vidi.v1.jobs\"").await?;
        let mut tokens = vision.subscribe("vidi.v1.tokens.*").await?;
        expect("Subscription to \"vidi.v1.tokens.*\"").await?;
        let inbox = vision.new_inbox();
        for api in [
            "STREAM.MSG.GET.VIDI_TOKENS",
            "CONSUMER.CREATE.VIDI_TOKENS.thief",
            "CONSUMER.MSG.NEXT.VIDI_FEATURES.fuse",
            "STREAM.DELETE.VIDI_FRAMES",
            "STREAM.PURGE.VIDI_TOKENS",
        ] {
            vision.publish_with_reply(format!("$JS.API.{api}"), inbox.clone(), "{\"seq\": 1}".into()).await?;
            expect(&format!("Publish to \"$JS.API.{api}\"")).await?;
        }
        // Another role's replies are as private as its queue.
        let mut inboxes = vision.subscribe("_INBOX.llm.>").await?;
        expect("Subscription to \"_INBOX.llm.>\"").await?;

        js.publish(operator.subjects().tokens(&secret), "more tokens".into()).await?.await?;
        ensure!(matches!(tokio::time::timeout(Duration::from_millis(300), tokens.next()).await, Err(_) | Ok(None)));
        ensure!(matches!(tokio::time::timeout(Duration::from_millis(10), inboxes.next()).await, Err(_) | Ok(None)));
        for (stream, messages) in [(StreamName::Jobs, 0), (StreamName::Tokens, 2), (StreamName::Features, 1)] {
            let state = operator.stream(stream).await.get_info().await?.state;
            ensure!(state.messages == messages, "{stream:?} holds {} messages", state.messages);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_the_authority_that_is_configured_and_with_no_other() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::with_tls()?;
        let rig = Rig::start(shipped.setup(program.as_deref())).await?;
        let clip = rig.media().join("clip.mp4");
        video(&clip, 3)?;
        let events = rig.answer(&request("answered", &clip)?).await?;
        ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}");
        ensure!(rig.bus.client().server_info().tls_required, "{:?}", rig.bus.client().server_info());

        shipped.authority("stranger")?;
        let stranger = shipped.file("stranger.pem").display().to_string();
        let output = stage(&shipped, rig.broker.url(), &[format!("bus.tls_ca={stranger}")])?;
        refused(&output, &[rig.broker.url(), "certificate", "bus.tls_ca", &stranger])?;
        let nowhere = shipped.file("nowhere.pem").display().to_string();
        let output = stage(&shipped, rig.broker.url(), &[format!("bus.tls_ca={nowhere}")])?;
        refused(&output, &["bus.tls_ca", &nowhere])?;
    }
    Ok(())
}
