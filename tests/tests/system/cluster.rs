//! Tests of how a pipeline starts on a cluster of three servers, and of what is said where it cannot be one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use config::BusConfig;
use deploy::up::broker::{self, Broker};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use protocol::stage::FileSource;
use runtime::bus::{Bus, BusErrorKind, Role};
use runtime::objects::{Fetching, Object, Objects};
use runtime::process::Exit;
use sha2::Digest;
use tests::cluster::{ClusterRig, HELD_BY_ALL, SERVERS, Servers};
use tests::harness::{Setup, terminal, vidi};
use tests::media::video;
use tests::own::Place;

/// Bytes of an upload: several chunks, and a part of one.
const UPLOAD_BYTES: usize = 3 << 20 | 12345;
/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_starts_before_its_cluster_has_a_leader_waits_for_it() -> anyhow::Result<()> {
    // Of three servers one is there, which answers that JetStream is not available.
    let cluster = ClusterRig::begin(Setup::default(), Duration::from_secs(5)).await?;
    cluster.rig.wait_ready().await?;
    cluster.well().await?;
    let log = cluster.rig.log();
    ensure!(log.contains("the cluster has no leader for it yet, waiting"), "{log}");
    let clip = cluster.rig.media().join("clip.mp4");
    video(&clip, 2)?;
    let request =
        JobRequest { max_new_tokens: 8, ..JobRequest::new(JobId::new("first")?, clip.to_string_lossy(), "a dog") };
    let events = cluster.rig.answer(&request).await?;
    ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}; {}", cluster.rig.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_fewer_copies_than_asked_stay_and_the_command_that_changes_each_is_told() -> anyhow::Result<()> {
    let servers = Servers::start(&Setup::default()).await?;
    let one = BusConfig { url: servers.url().as_str().into(), ..BusConfig::default() };
    Bus::connect(&one, Role::Operator, SOON).await?.ensure_streams().await?;

    let place = Place::new(None)?;
    let settings = [format!("bus.url={}", servers.url()), format!("bus.replicas={SERVERS}")];
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let mut up = place.up("up", &set)?;
    let bus = up.ready(Role::Operator).await?;
    for stream in HELD_BY_ALL {
        let on = stream.on(bus.subjects());
        let said = format!("nats stream edit {on} --replicas {SERVERS}");
        ensure!(up.log().contains(&said), "no {said:?} in {}", up.log());
        let mut info = bus.stream(stream).await.get_info().await?;
        ensure!(info.config.num_replicas == 1, "{on} was changed: {:?}", info.config);
        // What that command does.
        info.config.num_replicas = SERVERS;
        async_nats::jetstream::new(bus.client().clone()).update_stream(info.config).await?;
    }
    up.stop()?;

    // Their queues follow them.
    let since = Instant::now();
    for stream in HELD_BY_ALL {
        let consumers = runtime::bus::queue::Queue::of(stream, bus.subjects());
        for queue in consumers {
            loop {
                let info = bus.stream(stream).await.consumer_info(&queue.name).await?;
                let copies = info.cluster.map_or(0, |cluster| cluster.replicas.len() + 1);
                if copies == SERVERS {
                    break;
                }
                ensure!(since.elapsed() < SOON, "{} of {stream:?} is held by {copies} server(s)", queue.name);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let mut up = place.up("again", &set)?;
    up.ready(Role::Operator).await?;
    ensure!(!up.log().contains("nats stream edit"), "{}", up.log());
    up.stop()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_servers_are_refused_with_both_figures() -> anyhow::Result<()> {
    let place = Place::new(None)?;
    let broker = Broker::start(&place.media().join("broker"), &broker::Options::default()).await?;
    let three = BusConfig { url: broker.url().into(), replicas: 3, ..BusConfig::default() };
    let error = Bus::connect(&three, Role::Operator, SOON).await?.ensure_streams().await.err().context("taken")?;
    let said = error.to_string();
    ensure!(error.kind() == BusErrorKind::JetStream, "{:?}: {said}", error.kind());
    for word in ["VIDI_JOBS", "bus.replicas is 3", "one server without a cluster", "bus.replicas = 1"] {
        ensure!(said.contains(word), "no {word:?} in {said}");
    }
    for (replicas, word) in [("2", "bus.replicas is 1, 3 or 5"), ("0", "bus.replicas is 1, 3 or 5")] {
        let output = std::process::Command::new(vidi()?)
            .args(["--set", &format!("bus.replicas={replicas}"), "status"])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(Exit::Usage as i32) && said.contains(word), "{}: {said}", output.status);
    }
    Ok(())
}

/// Writes an upload to the object store; its name there.
async fn put(objects: &Objects, dir: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let bytes: Vec<u8> = (0..UPLOAD_BYTES).map(|n| (n / 4099 % 251) as u8 ^ name.as_bytes()[0]).collect();
    let path = dir.join(name);
    std::fs::write(&path, &bytes)?;
    let object = Object {
        name: name.to_owned(),
        size: bytes.len() as u64,
        modified_ns: 1_700_000_000_000_000_000,
        digest: sha2::Sha256::digest(&bytes).into(),
    };
    objects.put(&object, &path).await?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_on_the_bus_is_there_whichever_server_is_lost_and_more_come_meanwhile() -> anyhow::Result<()> {
    let mut servers = Servers::start(&Setup::default()).await?;
    let config = BusConfig { url: servers.url().as_str().into(), replicas: SERVERS, ..BusConfig::default() };
    let bus = Bus::connect(&config, Role::Operator, SOON).await?;
    let objects = Objects::of(&bus, bus.subjects().prefix());
    objects.make(64 << 20, Duration::from_secs(3600)).await?;
    let dir = tempfile::tempdir()?;
    let mut uploads = vec![("a", put(&objects, dir.path(), "a").await?)];
    for (lost, name) in ["b", "c", "d"].into_iter().enumerate() {
        servers.kill(lost).await?;
        uploads.push((name, put(&objects, dir.path(), name).await?));
        for (name, bytes) in &uploads {
            let (fetching, copy) = (Fetching::new(&bus), dir.path().join("copy"));
            let fetched = {
                let (name, copy) = ((*name).to_owned(), copy.clone());
                tokio::task::spawn_blocking(move || fetching.fetch(&name, &copy, &mut |_| true)).await?
            };
            ensure!(fetched.is_ok(), "{name} without server {lost}: {fetched:?}");
            ensure!(std::fs::read(&copy)? == *bytes, "another file came than {name} without server {lost}");
            std::fs::remove_file(copy)?;
        }
        servers.restart(lost).await?;
        // The next one is lost only when this one has caught up: more than one at a time is not what three copies stand.
        let stream = format!("OBJ_{}", objects.bucket());
        let since = Instant::now();
        loop {
            let js = async_nats::jetstream::new(bus.client().clone());
            let cluster = js.get_stream(&stream).await.ok().and_then(|s| s.cached_info().cluster.clone());
            let current = cluster.iter().flat_map(|c| &c.replicas).filter(|peer| peer.current && !peer.offline).count();
            if current == SERVERS - 1 {
                break;
            }
            ensure!(since.elapsed() < SOON, "the copies of {stream} have not caught up: {cluster:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
