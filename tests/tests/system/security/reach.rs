//! What each user of the shipped configuration reaches: by publishing itself, and by what the broker and the stages write
//! in its place, on a subject that it names for a reply or for a consumer's deliveries.

use std::time::Duration;

use anyhow::{Context, ensure};
use deploy::client;
use futures::StreamExt;
use protocol::control::Verb;
use protocol::error::StageName;
use protocol::event::Event;
use runtime::bus::{Bus, Role};
use runtime::subject::StreamName;
use tests::harness::{Rig, brokers, terminal};
use tests::media::video;
use tests::shipped::Shipped;

use super::raw::Raw;
use super::{SAYS, request, violations};

const STREAMS: [&str; 9] = ["JOBS", "DECODE", "FRAMES", "AUDIO", "FEATURES", "TOKENS", "EVENTS", "DEAD", "ROOM"];
/// Verbs of JetStream's API on a stream.
const ON_STREAM: [&str; 16] = [
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.INFO",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.SNAPSHOT",
    "STREAM.RESTORE",
    "STREAM.MSG.GET",
    "STREAM.MSG.DELETE",
    "STREAM.PEER.REMOVE",
    "STREAM.LEADER.STEPDOWN",
    "DIRECT.GET",
    "CONSUMER.CREATE",
    "CONSUMER.NAMES",
    "CONSUMER.LIST",
    "CONSUMER.RESET",
];
/// Verbs on a consumer.
const ON_CONSUMER: [&str; 8] = [
    "CONSUMER.CREATE",
    "CONSUMER.DURABLE.CREATE",
    "CONSUMER.INFO",
    "CONSUMER.DELETE",
    "CONSUMER.MSG.NEXT",
    "CONSUMER.PAUSE",
    "CONSUMER.UNPIN",
    "CONSUMER.LEADER.STEPDOWN",
];
const CONSUMERS: [&str; 7] = ["decode", "vision", "audio", "fuse", "admission", "priority-5", "stranger"];

/// Every subject that somebody could want to publish on.
fn subjects() -> Vec<String> {
    let mut all: Vec<String> = ["INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.CREATE.STRANGER", "ACCOUNT.PURGE.VIDI"]
        .map(|verb| format!("$JS.API.{verb}"))
        .into();
    for stream in STREAMS {
        all.extend(ON_STREAM.map(|verb| format!("$JS.API.{verb}.VIDI_{stream}")));
        all.push(format!("$JS.API.DIRECT.GET.VIDI_{stream}.vidi.v1.events.x"));
        for consumer in CONSUMERS {
            all.extend(ON_CONSUMER.map(|verb| format!("$JS.API.{verb}.VIDI_{stream}.{consumer}")));
            all.push(format!("$JS.API.CONSUMER.CREATE.VIDI_{stream}.{consumer}.vidi.v1.events.x"));
            all.push(format!("$JS.ACK.VIDI_{stream}.{consumer}.1.1.1.1.1"));
        }
    }
    all.extend(ON_STREAM.map(|verb| format!("$JS.API.{verb}.OBJ_VIDI_FILES")));
    all.extend(["$O.VIDI_FILES.C.x", "$O.VIDI_FILES.M.x"].map(str::to_owned));
    let pipeline = "jobs jobs.5.x owner.x workers offer.x probe probe.x where hand.x decode.x frames.x audio.x features.x tokens.x report.x events.x room";
    all.extend(pipeline.split(' ').map(|s| format!("vidi.v1.{s}")));
    all.extend(Verb::ALL.map(|verb| format!("vidi.v1.control.{verb}")));
    for stage in StageName::ALL {
        all.push(format!("vidi.v1.dead.{stage}.x"));
        all.push(format!("vidi.v1.status.{stage}"));
        all.extend(["PING", "INFO", "STATS"].map(|verb| format!("$SRV.{verb}.vidi-{stage}")));
        all.push(format!("_INBOX.{stage}.x"));
    }
    all.extend(["_INBOX.client.x", "_INBOX.gateway.x", "_INBOX.operator.x", "_R_.x"].map(str::to_owned));
    all.extend(["$SRV.PING", "$SRV.INFO", "$SRV.STATS", "$SYS.REQ.SERVER.PING", "nobody.x"].map(str::to_owned));
    all.extend(["$JS.EVENT.ADVISORY.x", "$JSC.x", "$JS.FC.x"].map(str::to_owned));
    all
}

/// Subjects that a user has for its work, `*` standing for one part and `>` for the rest: as the stages' code asks for them,
/// not as deploy/users.conf says them.
fn own(user: &str) -> Vec<String> {
    let worker = |stage: &str, stream: &str, outputs: &[&str], purges: &[&str]| {
        let mut own: Vec<String> = outputs.iter().map(|output| format!("vidi.v1.{output}.x")).collect();
        own.extend(["report.x", "events.x", "owner.x", "control.cancel"].map(|s| format!("vidi.v1.{s}")));
        own.push("$SRV.INFO".to_owned());
        own.push(format!("vidi.v1.dead.{stage}.x"));
        // Its own queue, and whether requests wait: a cancel is written down before they are admitted.
        own.push("$JS.API.STREAM.INFO.VIDI_JOBS".to_owned());
        own.push(format!("$JS.API.STREAM.INFO.VIDI_{stream}"));
        own.push("$JS.API.STREAM.MSG.GET.VIDI_EVENTS".to_owned());
        own.extend(["INFO", "MSG.NEXT"].map(|v| format!("$JS.API.CONSUMER.{v}.VIDI_{stream}.{stage}")));
        own.push(format!("$JS.ACK.VIDI_{stream}.{stage}.>"));
        own.extend(purges.iter().map(|stream| format!("$JS.API.STREAM.PURGE.VIDI_{stream}")));
        own
    };
    let listed = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    match user {
        "decode" => {
            let mut own = worker("decode", "DECODE", &["frames", "audio"], &["DECODE", "FRAMES", "AUDIO"]);
            own.extend(["probe.x", "where", "hand.x"].map(|s| format!("vidi.v1.{s}")));
            own.extend(["STREAM.MSG.GET", "DIRECT.GET"].map(|verb| format!("$JS.API.{verb}.OBJ_VIDI_FILES")));
            own
        }
        "vision" => worker("vision", "FRAMES", &["features"], &["FRAMES", "FEATURES"]),
        "audio" => worker("audio", "AUDIO", &["features"], &["AUDIO", "FEATURES"]),
        "fuse" => worker("fuse", "FEATURES", &["tokens"], &["FEATURES", "TOKENS"]),
        "llm" => listed(
            "vidi.v1.jobs vidi.v1.jobs.5.x vidi.v1.owner.x vidi.v1.workers vidi.v1.offer.x vidi.v1.probe vidi.v1.decode.x \
             vidi.v1.frames.x vidi.v1.audio.x \
             vidi.v1.features.x vidi.v1.events.x vidi.v1.room vidi.v1.dead.llm.x vidi.v1.control.cancel \
             vidi.v1.control.load vidi.v1.control.unload $SRV.INFO $JS.API.STREAM.INFO.* $JS.API.STREAM.CREATE.* \
             $JS.API.STREAM.PURGE.* $JS.API.STREAM.MSG.GET.* $JS.API.STREAM.MSG.DELETE.* $JS.API.CONSUMER.INFO.*.* \
             $JS.API.CONSUMER.CREATE.VIDI_JOBS.> $JS.API.CONSUMER.MSG.NEXT.VIDI_JOBS.* $JS.ACK.VIDI_JOBS.> \
             $JS.API.CONSUMER.CREATE.VIDI_DECODE.decode $JS.API.CONSUMER.CREATE.VIDI_FRAMES.vision \
             $JS.API.CONSUMER.CREATE.VIDI_AUDIO.audio $JS.API.CONSUMER.CREATE.VIDI_FEATURES.fuse \
             $JS.API.CONSUMER.CREATE.VIDI_TOKENS $JS.API.CONSUMER.CREATE.VIDI_TOKENS.> \
             $JS.API.CONSUMER.MSG.NEXT.VIDI_TOKENS.*",
        ),
        "client" => listed(
            "vidi.v1.jobs vidi.v1.probe vidi.v1.control.cancel $JS.API.STREAM.MSG.GET.VIDI_EVENTS $SRV.PING $SRV.PING.> \
             $SRV.INFO $SRV.INFO.> $SRV.STATS $SRV.STATS.>",
        ),
        "gateway" => listed(
            "$O.VIDI_FILES.C.x $O.VIDI_FILES.M.x $JS.API.STREAM.INFO.OBJ_VIDI_FILES $JS.API.STREAM.CREATE.OBJ_VIDI_FILES \
             $JS.API.STREAM.PURGE.OBJ_VIDI_FILES $JS.API.STREAM.MSG.GET.OBJ_VIDI_FILES",
        ),
        _ => listed("vidi.v1.> $SRV.> $JS.API.> $JS.ACK.>"),
    }
}

/// Whether a subject is one of those that a pattern stands for.
fn stands_for(pattern: &str, subject: &str) -> bool {
    let mut parts = subject.split('.');
    for part in pattern.split('.') {
        match (part, parts.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(given)) if part == given => {}
            _ => return false,
        }
    }
    parts.next().is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_publishes_on_a_subject_that_its_work_does_not_need() -> anyhow::Result<()> {
    let (all, users) = (subjects(), ["decode", "vision", "audio", "fuse", "llm", "client", "gateway", "operator"]);
    for program in brokers() {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program.as_deref()).await?;
        for user in users {
            let mut raw = Raw::connect(broker.url(), user, &shipped.password(user)?)?;
            for subject in &all {
                // Empty, so that nothing that is let through does anything.
                raw.publish(subject, "", "")?;
            }
            let heard = raw.settle()?;
            for subject in &all {
                let needed = own(user).iter().any(|pattern| stands_for(pattern, subject));
                ensure!(heard.refuses(subject) != needed, "{program:?}: {user} on {subject}: needed is {needed}");
            }
            for (id, other) in users.iter().filter(|&other| *other != user).enumerate() {
                raw.subscribe(&format!("_INBOX.{other}.>"), id)?;
            }
            let heard = raw.settle()?;
            ensure!(heard.errors.len() == users.len() - 1, "{program:?}: {user} reads others' replies: {heard:?}");
        }
    }
    Ok(())
}

/// Subjects of the pipeline on which a client has nothing to say.
const FORBIDDEN: [&str; 9] = [
    "vidi.v1.control.unload",
    "vidi.v1.control.load",
    "vidi.v1.control.drain",
    "vidi.v1.room",
    "vidi.v1.jobs.5.x",
    "vidi.v1.decode.x",
    "vidi.v1.tokens.x",
    "vidi.v1.events.x",
    "vidi.v1.dead.llm.x",
];

/// All that can be asked in the place of which another writes: requests, whose replies go where it is said, and consumers,
/// which deliver where it is said.
fn asked_to_write_on(raw: &mut Raw, target: &str) -> anyhow::Result<usize> {
    let probe = "{\"video\": \"/nowhere\"}";
    let requests = [
        ("vidi.v1.jobs", "{\"job\": \"bait\", \"video\": \"/nowhere\", \"stage\": \"vision\"}"),
        ("vidi.v1.probe", probe),
        ("vidi.v1.control.cancel", "{\"job\": \"bait\"}"),
        ("vidi.v1.control.cancel", "{\"stage\": \"vision\"}"),
        ("$SRV.PING", ""),
        ("$SRV.INFO", ""),
        ("$SRV.STATS.vidi-vision", ""),
        ("vidi.v1.status.vision", ""),
        ("$JS.API.STREAM.MSG.GET.VIDI_EVENTS", "{\"seq\": 1}"),
        ("$JS.API.STREAM.INFO.VIDI_EVENTS", ""),
        ("$JS.API.STREAM.INFO.VIDI_FRAMES", ""),
    ];
    for (subject, body) in requests {
        raw.publish(subject, target, body)?;
    }
    let mut asked = requests.len();
    for stream in ["VIDI_EVENTS", "VIDI_JOBS", "VIDI_FRAMES", "VIDI_DEAD"] {
        for form in
            ["CREATE.STREAM", "CREATE.STREAM.bait", "CREATE.STREAM.bait.vidi.v1.>", "DURABLE.CREATE.STREAM.bait"]
        {
            let config = serde_json::json!({
                "stream_name": stream,
                "config": {"name": "bait", "durable_name": "bait", "deliver_subject": target, "ack_policy": "none"}
            });
            let subject = format!("$JS.API.CONSUMER.{}", form.replace("STREAM", stream));
            raw.publish(&subject, "_INBOX.client.x", &config.to_string())?;
            asked += 1;
        }
    }
    Ok(asked)
}

/// Waits until the broker has a client's subscriptions, so that they hear what another one sends now: it answers a request behind
/// them, while `flush` only empties the client's own buffer.
async fn subscribed(bus: &Bus) -> anyhow::Result<()> {
    bus.stream(StreamName::Events).await.get_info().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_makes_nobody_write_where_it_may_not() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let rig = Rig::start(shipped.setup(program.as_deref())).await?;
        let clip = rig.media().join("clip.mp4");
        video(&clip, 3)?;
        let events = rig.answer(&request("before", &clip)?).await?;
        ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}");
        let before = StageName::ALL.map(|stage| rig.pids(stage));
        let operator = Bus::connect(rig.bus.config(), Role::Operator, SAYS).await?;
        let mut heard = Vec::new();
        for target in FORBIDDEN {
            heard.push(operator.client().subscribe(target).await?);
        }
        subscribed(&operator).await?;
        let mut client = Raw::connect(rig.broker.url(), "client", &shipped.password("client")?)?;
        let mut asked = 0;
        for target in FORBIDDEN {
            asked += asked_to_write_on(&mut client, target)?;
        }
        client.settle()?;
        ensure!(asked > 200, "only {asked} messages");
        // Twice what a probe of a file that is not there takes.
        let mut written = futures::stream::select_all(heard);
        if let Ok(message) = tokio::time::timeout(Duration::from_secs(3), written.next()).await {
            let message = message.context("the subscription is gone")?;
            anyhow::bail!("{program:?}: written on {}: {:?}", message.subject, message.payload);
        }
        ensure!(StageName::ALL.map(|stage| rig.pids(stage)) == before, "{program:?}: stages ended; {}", rig.log());
        let events = rig.answer(&request("after", &clip)?).await?;
        ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}; {}", rig.log());
        ensure!(!violations(&rig).is_empty(), "nothing was refused: nothing was tried");
    }
    Ok(())
}

/// A stage shares the pipeline's account, and so can have replies written on any of its subjects: the supervisor sees that
/// those are no requests.
#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_does_what_operators_and_the_owners_of_jobs_ask_and_nobody_else() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let rig = Rig::start(shipped.setup(program.as_deref())).await?;
        let before = StageName::ALL.map(|stage| rig.pids(stage));
        let operator = Bus::connect(rig.bus.config(), Role::Operator, SAYS).await?;
        let mut written = operator.client().subscribe("vidi.v1.control.*").await?;
        subscribed(&operator).await?;
        let mut vision = Raw::connect(rig.broker.url(), "vision", &shipped.password("vision")?)?;
        for target in ["vidi.v1.control.unload", "vidi.v1.control.drain"] {
            asked_to_write_on(&mut vision, target)?;
        }
        vision.settle()?;
        let reached = async {
            while let Some(message) = written.next().await {
                if message.subject.as_str() == "vidi.v1.control.unload" {
                    return true;
                }
            }
            false
        };
        let reached = tokio::time::timeout(SAYS, reached).await.unwrap_or(false);
        ensure!(reached, "no reply was written on control.unload: nothing was tried");
        // Asked on the subject itself, but by somebody who may not: only where there are no permissions can that be.
        operator.client().publish("vidi.v1.control.unload", "".into()).await?;
        let inbox = "_INBOX.client.x".to_owned();
        operator.client().publish_with_reply("vidi.v1.control.unload", inbox, "".into()).await?;
        let drain = "{\"stage\": \"vision\"}";
        operator.client().publish("vidi.v1.control.drain", drain.into()).await?;
        operator.client().flush().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(StageName::ALL.map(|stage| rig.pids(stage)) == before, "{program:?}: stages ended; {}", rig.log());
        let reply = client::load(&operator, Verb::Unload, Some(StageName::Vision)).await?;
        ensure!(reply.processes == 1 && reply.error.is_none(), "{reply:?}");
    }
    Ok(())
}
