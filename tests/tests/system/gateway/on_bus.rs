//! Uploads that travel over the bus: stage-decode does not see the gateway's spool.

use std::path::Path;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use protocol::error::{ErrorKind, StageName};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use serde_json::json;
use tests::harness::{Rig, Setup, brokers, terminal};

use super::rig::{Alone, clip, memory, start};
use super::{ensure_true, events, question, until};

/// Bytes of all uploads.
const SPOOL_BYTES: u64 = 256 << 20;
/// Bytes of a large one.
const LARGE_BYTES: usize = 96 << 20;
/// Bytes by which a process's largest size may grow while a large one passes through it.
const GROWS: u64 = 64 << 20;

/// Names of the files in a directory, but for the lock of the spool.
fn files(dir: &Path) -> anyhow::Result<Vec<String>> {
    let names = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
    names.sort();
    Ok(names)
}

/// Messages in the object store.
async fn stored(rig: &Rig) -> anyhow::Result<u64> {
    let js = jetstream::new(rig.operator().await?.client().clone());
    Ok(js.get_stream("OBJ_VIDI_FILES").await?.cached_info().state.messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_no_stage_decode_sees_is_answered_about_over_the_bus_and_leaves_it_when_it_is_removed()
-> anyhow::Result<()> {
    for broker in brokers() {
        let dir = tempfile::tempdir()?;
        let (spool, fetched) = (dir.path().join("spool"), dir.path().join("fetched"));
        let set = vec![format!("decode.spool={}", fetched.display())];
        let setup = Setup { broker, model: Some("demo".into()), keep_video: true, set, ..Setup::default() };
        let (rig, by_disk) = start(setup).await?;
        let unseen = format!("http.spool={}", spool.display());
        let bytes = [format!("http.spool_bytes={SPOOL_BYTES}"), format!("http.upload_bytes={SPOOL_BYTES}")];
        let set = ["http.files=bus", &unseen, &bytes[0], &bytes[1]];
        let mut gateway = Alone::start(&rig, "unused", &set, &[]).await?;
        let client = gateway.client.clone();
        let (video, truth) = clip(&rig).await?;
        let bytes = std::fs::read(&video)?;

        let asked = question(&truth, "retrieval")?;
        let body = json!({ "job": "by-path", "video": video, "query": asked.query, "max_new_tokens": 24 });
        by_disk.post("/v1/jobs", &body).await?.expect(202)?;
        let (_, expected) = events(&by_disk, "by-path", None).await?;
        ensure_true(asked, &expected)?;

        let file = client.form("/v1/files", &[], Some(("file", &bytes))).await?.expect(201)?.json();
        let id = file["id"].as_str().context("no id")?.to_owned();
        ensure!(stored(&rig).await? >= 2, "a file is chunks and facts");
        for (job, cached) in [("first", json!(false)), ("second", json!("memory"))] {
            let body = json!({ "job": job, "file_id": id, "query": asked.query, "max_new_tokens": 24 });
            client.post("/v1/jobs", &body).await?.expect(202)?;
            let (_, result) = events(&client, job, None).await?;
            ensure!(result["token_ids"] == expected["token_ids"], "{result}; {}", rig.log());
            ensure!(result["cached"] == cached, "{result}");
        }
        let name = format!("{}.mp4", id.trim_start_matches("file-"));
        ensure!(files(&fetched)? == [name.clone()] && std::fs::read(fetched.join(&name))? == bytes);

        // A large one passes through in pieces.
        let large: Vec<u8> = (0..LARGE_BYTES).map(|n| (n / 7919 % 251) as u8).collect();
        let pid = *rig.pids(StageName::Decode).first().context("no stage-decode")?;
        let before = (gateway.memory()?.1, memory(pid)?.1);
        let file = client.form("/v1/files", &[], Some(("file", &large))).await?.expect(201)?.json();
        let of_large = format!("bus:{}.mp4", file["id"].as_str().context("no id")?.trim_start_matches("file-"));
        let no_video = JobRequest::new(JobId::new("no-video")?, of_large.clone(), "a dog");
        let heard = rig.answer(&no_video).await?;
        let Event::Failed { error } = terminal(&heard)? else { anyhow::bail!("{heard:?}") };
        ensure!(error.kind == ErrorKind::UnsupportedMedia, "{error:?}");
        let copy = fetched.join(of_large.trim_start_matches("bus:"));
        ensure!(std::fs::read(copy)? == large, "another file came than was sent");
        let after = (gateway.memory()?.1, memory(pid)?.1);
        ensure!(after.0 < before.0 + GROWS && after.1 < before.1 + GROWS, "{before:?} to {after:?} bytes");

        // Removed, it is gone from the store, and nobody is answered from a copy.
        let path = format!("/v1/files/{id}");
        until("the file is let go", async || Ok(client.delete(&path).await?.status == 200)).await?;
        let gone = |job: &str| anyhow::Ok(JobRequest::new(JobId::new(job)?, format!("bus:{name}"), "a dog"));
        until("the file has left the store", async || {
            let number = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
            let heard = rig.answer(&gone(&format!("gone-{number}"))?).await?;
            Ok(matches!(terminal(&heard)?, Event::Failed { error } if error.kind == ErrorKind::MediaNotFound
                && error.hint.contains("upload it again")))
        })
        .await?;

        // What the next gateway does not know is removed.
        gateway.child.kill().await?;
        std::fs::remove_dir_all(&spool)?;
        let _gateway = Alone::start(&rig, "unused", &set, &[]).await?;
        ensure!(stored(&rig).await? == 0, "files are left in the store");
    }
    Ok(())
}
