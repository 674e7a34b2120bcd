//! What the gateway says of itself: its description, its figures, its page.

use anyhow::{Context, ensure};
use serde_json::json;
use tests::harness::Rig;

use super::client::Client;
use super::rig::{Alone, clip, with_pipeline};
use super::{events, question};

#[test]
fn the_description_has_every_method_of_every_path() -> anyhow::Result<()> {
    with_pipeline(async |_, client| {
        let description = client.get("/openapi.json").await?.expect(200)?;
        ensure!(description.header("content-type") == "application/json", "{:?}", description.headers);
        let description = description.json();
        let paths = description["paths"].as_object().context("no paths")?;
        for (path, methods) in paths {
            let place = path.replace("{job}", "never").replace("{id}", "never");
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                // A body that no path takes, so that nothing comes of it.
                let body: &[u8] = if method == "POST" { b"x" } else { b"" };
                let answer = client.ask(method, &place, "text/plain", body).await?;
                let is_described = methods.get(method.to_lowercase()).is_some();
                ensure!((answer.status != 405) == is_described, "{method} {path}: {}", answer.status);
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_counted_is_what_was_done() -> anyhow::Result<()> {
    with_pipeline(counted)
}

async fn counted(rig: &Rig, _: &Client) -> anyhow::Result<()> {
    let gateway = Alone::start(rig, "counted", &[], &[]).await?;
    let client = &gateway.client;
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "qa")?;
    let bytes = std::fs::read(&video)?;
    let file = client.form("/v1/files", &[], Some(("file", &bytes))).await?.expect(201)?.json();
    let body =
        json!({ "job": "counted", "task": "qa", "query": asked.query, "file_id": file["id"], "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    events(client, "counted", None).await?;
    let body = json!({ "job": "none", "task": "made-up", "query": "x", "video": video });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    events(client, "none", None).await?;
    // The gateway hears of a job's end after its reader.
    super::until("both are counted", async || {
        Ok(client.get("/metrics").await?.text().contains("vidi_http_jobs_in_flight 0\n"))
    })
    .await?;
    let answer = client.get("/metrics").await?.expect(200)?;
    ensure!(answer.header("content-type").starts_with("application/openmetrics-text"), "{:?}", answer.headers);
    let text = answer.text();
    for line in [
        "vidi_http_jobs_total{task=\"qa\",outcome=\"answered\"} 1\n".to_owned(),
        "vidi_http_jobs_total{task=\"other\",outcome=\"failed\"} 1\n".to_owned(),
        format!("vidi_http_upload_bytes_total {}\n", bytes.len()),
        format!("vidi_http_spool_bytes {}\n", bytes.len()),
        "vidi_stage_state{stage=\"llm\",state=\"ready\",prefix=\"vidi.v1\"} 1\n".to_owned(),
        "vidi_stage_state{stage=\"llm\",state=\"missing\",prefix=\"vidi.v1\"} 0\n".to_owned(),
        "vidi_http_request_seconds_count{path=\"/v1/jobs\",method=\"POST\",status=\"202\"} 2\n".to_owned(),
    ] {
        ensure!(text.contains(&line), "{line}: {text}");
    }
    ensure!(text.ends_with("# EOF\n"), "{text}");
    Ok(())
}

#[test]
fn the_page_may_do_nothing_but_what_its_policy_says() -> anyhow::Result<()> {
    with_pipeline(async |_, client| {
        let page = client.get("/").await?.expect(200)?;
        ensure!(page.header("content-type") == "text/html; charset=utf-8", "{:?}", page.headers);
        let policy = page.header("content-security-policy");
        ensure!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        ensure!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        ensure!(page.text().starts_with("<!doctype html>"), "{}", page.text());
        Ok(())
    })
}
