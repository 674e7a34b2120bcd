//! Many clients at once, slow ones among them, and large uploads: what the gateway holds in memory meanwhile.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use serde_json::json;
use tests::harness::Rig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{self, Client, EventStream};
use super::rig::{Alone, clip, with_pipeline};
use super::{ensure_true, question, until};

/// Clients at once.
const CLIENTS: usize = 50;
/// Bytes that the gateway may hold for a client, whatever that sends.
const PER_CLIENT: u64 = 1 << 20;
/// Bytes that it may hold for a large upload, its own growth with its first request included.
const GROWTH: u64 = 16 << 20;
/// Bytes of a large upload.
const LARGE: usize = 192 << 20;

/// The last event of a stream, of which the client takes its time to read each.
async fn last(mut stream: EventStream, pause: Duration) -> anyhow::Result<serde_json::Value> {
    let mut last = None;
    while let Some((_, data)) = stream.next().await? {
        last = Some(data);
        tokio::time::sleep(pause).await;
    }
    Ok(serde_json::from_str(&last.context("no event")?)?)
}

#[test]
fn fifty_clients_at_once_get_their_answers_though_half_of_them_hardly_read() -> anyhow::Result<()> {
    with_pipeline(fifty)
}

async fn fifty(rig: &Rig, _: &Client) -> anyhow::Result<()> {
    let gateway = Alone::start(rig, "fifty", &[], &[]).await?;
    let client = &gateway.client;
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "qa")?;
    let bytes = std::fs::read(&video)?;
    let first = client.form("/v1/files", &[], Some(("file", &bytes))).await?.expect(201)?.json();
    let (before, _) = gateway.memory()?;
    let one = async |number: usize| {
        // Each sends the video too, which is one file.
        let id = client.form("/v1/files", &[], Some(("file", &bytes))).await?.expect(200)?.json()["id"].clone();
        ensure!(id == first["id"], "{id}");
        let job = format!("many-{number}");
        let body = json!({ "job": job, "task": "qa", "query": asked.query, "file_id": id, "max_new_tokens": 24 });
        client.post("/v1/jobs", &body).await?.expect(202)?;
        let stream = client.events(&format!("/v1/jobs/{job}/events"), None).await?;
        let pause = Duration::from_millis(if number.is_multiple_of(2) { 0 } else { 150 });
        let end = last(stream, pause).await?;
        ensure!(end["kind"] == "result", "{end}");
        ensure_true(asked, &end)
    };
    try_join_all((0..CLIENTS).map(one)).await?;
    let (_, most) = gateway.memory()?;
    ensure!(most < before + CLIENTS as u64 * PER_CLIENT, "{} MB more than {} MB", (most - before) >> 20, before >> 20);
    Ok(())
}

#[test]
fn a_large_upload_is_never_held_in_memory() -> anyhow::Result<()> {
    with_pipeline(large)
}

async fn large(rig: &Rig, _: &Client) -> anyhow::Result<()> {
    let gateway = Alone::start(rig, "large", &[], &[]).await?;
    let head = client::form(&[], Some(("file", &[])));
    let (before, _) = gateway.memory()?;
    let kind = client::form_type();
    let start = &head[..client::file_at(&head)?];
    let end = &head[start.len()..];
    let mut socket =
        gateway.client.send("POST", "/v1/files", &[("content-type", &kind)], start, head.len() + LARGE).await?;
    let piece = vec![7; 1 << 20];
    for _ in 0..LARGE / piece.len() {
        socket.get_mut().write_all(&piece).await?;
    }
    socket.get_mut().write_all(end).await?;
    ensure!(client::head(&mut socket).await?.status == 201);
    let (_, most) = gateway.memory()?;
    ensure!(most < before + GROWTH, "{} MB more than {} MB", (most - before) >> 20, before >> 20);
    Ok(())
}

#[test]
fn who_keeps_silent_half_way_is_given_up_and_leaves_nothing() -> anyhow::Result<()> {
    with_pipeline(async |rig, _| {
        let gateway = Alone::start(rig, "silent", &["http.idle_s=1"], &[]).await?;
        let form = client::form(&[], Some(("file", &[7; 100_000])));
        let kind = client::form_type();
        let head = [("content-type", kind.as_str())];
        let mut socket = gateway.client.send("POST", "/v1/files", &head, &form[..50_000], form.len()).await?;
        ensure!(client::head(&mut socket).await?.status == 408);
        until("nothing is left", async || Ok(gateway.spooled()?.is_empty())).await
    })
}

/// More requests for the page than the buffers of two sockets hold answers to.
const PAGES: usize = 600;

#[test]
fn who_takes_nothing_is_cut_off_and_makes_room_for_others() -> anyhow::Result<()> {
    with_pipeline(async |rig, _| {
        let gateway = Alone::start(rig, "full", &["http.idle_s=1", "http.connections=1"], &[]).await?;
        let mut silent = TcpStream::connect(&gateway.client.address).await?;
        let asked = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", gateway.client.address).repeat(PAGES);
        silent.write_all(asked.as_bytes()).await?;
        gateway.client.get("/").await?.expect(200)?;
        let mut taken = Vec::new();
        // What the system holds may still come; then the connection is reset, or ends.
        let _ = silent.read_to_end(&mut taken).await;
        let pages = taken.windows(6).filter(|text| text == b"200 OK").count();
        ensure!((1..PAGES).contains(&pages), "{pages} of {PAGES} answers were sent to a client that took none");
        Ok(())
    })
}
