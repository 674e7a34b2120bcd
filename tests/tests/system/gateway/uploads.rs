//! Files and forms: what is uploaded, twice, half, too much, and in no form.

use anyhow::{Context, ensure};
use serde_json::json;
use tests::harness::Rig;

use super::client::{self, Client};
use super::rig::{Alone, clip, own, with_pipeline};
use super::{ensure_true, events, question, until};

/// Bytes that an upload may have here.
const UPLOAD_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_video_that_is_uploaded_twice_is_one_file_and_is_watched_once() -> anyhow::Result<()> {
    // Nobody else's video takes the place of the one that is kept.
    let (rig, _) = own().await?;
    let gateway = Alone::start(&rig, "twice", &[], &[]).await?;
    let client = &gateway.client;
    let (video, truth) = clip(&rig).await?;
    let bytes = std::fs::read(&video)?;
    let first = client.form("/v1/files", &[("purpose", "vision")], Some(("file", &bytes))).await?.expect(201)?.json();
    let id = first["id"].as_str().context("no id")?.to_owned();
    ensure!(first["bytes"] == bytes.len() && first["filename"] == "clip.mp4", "{first}");
    let second = client.form("/v1/files", &[], Some(("file", &bytes))).await?.expect(200)?.json();
    ensure!(second == first, "{second} and {first}");
    ensure!(client.get(&format!("/v1/files/{id}")).await?.json() == first);
    ensure!(gateway.spooled()?.len() == 2, "{:?}", gateway.spooled()?);

    let asked = question(&truth, "retrieval")?;
    let body = json!({ "job": "by-id", "file_id": id, "query": asked.query, "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    let (_, result) = events(client, "by-id", None).await?;
    ensure_true(asked, &result)?;
    // The same bytes in a form are the same file, whose keys and values are kept.
    let texts = [("job", "by-form"), ("query", asked.query.as_str()), ("max_new_tokens", "24")];
    client.form("/v1/jobs", &texts, Some(("video", &bytes))).await?.expect(202)?;
    let (_, result) = events(client, "by-form", None).await?;
    ensure_true(asked, &result)?;
    ensure!(result["cached"] == "memory", "{result}");

    let path = format!("/v1/files/{id}");
    // The gateway hears of a job's end after its reader.
    until("the file is let go", async || Ok(client.delete(&path).await?.status == 200)).await?;
    client.get(&path).await?.problem(404, "not_found")?;
    let mut body = body;
    body["job"] = json!("gone");
    client.post("/v1/jobs", &body).await?.problem(404, "not_found")?;
    ensure!(gateway.spooled()?.is_empty(), "{:?}", gateway.spooled()?);
    Ok(())
}

#[test]
fn an_upload_that_is_too_large_or_ends_half_way_or_is_no_form_leaves_nothing() -> anyhow::Result<()> {
    with_pipeline(spoilt)
}

async fn spoilt(rig: &Rig, _: &Client) -> anyhow::Result<()> {
    let limits = format!("http.upload_bytes={UPLOAD_BYTES}");
    let gateway = Alone::start(rig, "spoilt", &[&limits, "http.spool_bytes=16777216"], &[]).await?;
    let client = &gateway.client;
    let kind = client::form_type();
    let head = [("content-type", kind.as_str())];

    // Refused for what it says before a byte of it is read, and for what it is.
    let mut socket = client.send("POST", "/v1/files", &head, &[], 1 << 30).await?;
    ensure!(client::head(&mut socket).await?.status == 413);
    let large = client::form(&[], Some(("file", &vec![7; UPLOAD_BYTES + 1])));
    let mut socket = client.send("POST", "/v1/files", &head, &large, large.len()).await?;
    ensure!(client::head(&mut socket).await?.status == 413);

    // Cut off in the middle.
    let half = client::form(&[], Some(("file", &vec![7; UPLOAD_BYTES / 2])));
    let socket = client.send("POST", "/v1/files", &head, &half[..half.len() - 1000], half.len()).await?;
    until("an upload has begun", async || Ok(gateway.spooled()?.iter().any(|name| name.starts_with("upload-"))))
        .await?;
    drop(socket);
    until("nothing is left", async || Ok(gateway.spooled()?.is_empty())).await?;

    // What it says is whole, and its form has no end.
    let torn = &half[..half.len() - 1000];
    client.ask("POST", "/v1/files", &kind, torn).await?.problem(400, "bad_request")?;
    client.ask("POST", "/v1/files", "multipart/form-data", &half).await?.problem(400, "bad_request")?;
    client.ask("POST", "/v1/files", &kind, b"nothing of a form").await?.problem(400, "bad_request")?;
    client.ask("POST", "/v1/files", "application/json", b"{}").await?.problem(400, "bad_request")?;
    client.form("/v1/files", &[("a", "b")], None).await?.problem(400, "bad_request")?;
    client.form("/v1/files", &[], Some(("file", b""))).await?.problem(400, "bad_request")?;
    client.form("/v1/jobs", &[("job", "a"), ("job", "b")], Some(("video", b"x"))).await?.problem(400, "bad_request")?;
    until("nothing is left", async || {
        // A form that was refused behind its file leaves that, whole, for its age.
        Ok(!gateway.spooled()?.iter().any(|name| name.starts_with("upload-")))
    })
    .await?;

    // Bodies in JSON.
    client.ask("POST", "/v1/jobs", "application/json", b"{\"video\": ").await?.problem(400, "bad_request")?;
    client.post("/v1/jobs", &json!({ "query": "x" })).await?.problem(400, "bad_request")?;
    let misspelt = client.post("/v1/jobs", &json!({ "video": "/x.mp4", "qeury": "x" })).await?;
    let misspelt = misspelt.problem(400, "bad_request")?;
    ensure!(misspelt["message"].as_str().is_some_and(|message| message.contains("qeury")), "{misspelt}");
    client.post("/v1/jobs", &json!({ "video": "/x.mp4", "fps": -1 })).await?.problem(400, "bad_request")?;
    Ok(())
}
