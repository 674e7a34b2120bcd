//! Who may ask, and what is asked of the stages: tokens, hosts, load and unload, the end.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use protocol::error::StageName;
use serde_json::json;
use tests::harness::{Rig, Setup, signal, vidi};

use super::client::{self, Client};
use super::rig::{Alone, start, with_pipeline};
use super::until;

#[test]
fn a_gateway_with_a_token_answers_nobody_without_it() -> anyhow::Result<()> {
    with_pipeline(token)
}

async fn token(rig: &Rig, open: &Client) -> anyhow::Result<()> {
    let token = rig.dir.path().join("token");
    std::fs::write(&token, "geheim\n")?;
    let file = format!("http.token_file={}", token.display());
    let Alone { client: Client { address, .. }, mut child, .. } = Alone::start(rig, "closed", &[&file], &[]).await?;
    let ask = |token: Option<&str>| Client { address: address.to_owned(), token: token.map(str::to_owned) };

    let refused = ask(None).get("/v1/models").await?;
    ensure!(refused.header("www-authenticate") == "Bearer", "{refused:?}");
    refused.problem(401, "unauthorized")?;
    ask(Some("geheim1")).get("/v1/models").await?.problem(401, "unauthorized")?;
    ask(None).form("/inference", &[("question", "x")], None).await?.problem(401, "unauthorized")?;
    ask(Some("geheim")).get("/v1/models").await?.expect(200)?;
    ask(None).get("/livez").await?.expect(200)?;
    ask(None).get("/health").await?.expect(200)?;
    ask(None).get("/health?model=which").await?.problem(401, "unauthorized")?;
    ask(Some("geheim")).get("/health?model=which").await?.problem(404, "not_found")?;
    ask(None).get("/").await?.expect(200)?;
    ask(None).get("/metrics").await?.problem(401, "unauthorized")?;
    ask(Some("geheim")).get("/nowhere").await?.problem(404, "not_found")?;
    ask(Some("geheim")).get("/v1/jobs").await?.problem(405, "method_not_allowed")?;
    signal(child.id().context("it has ended")?, "TERM")?;
    ensure!(tokio::time::timeout(Duration::from_secs(30), child.wait()).await??.success());

    // Where there is none, nobody listens but to this host, and no page of elsewhere gets through.
    let all = rig.run(&["gateway", "--http", "0.0.0.0:0"])?;
    let trouble = String::from_utf8_lossy(&all.stderr).into_owned();
    ensure!(all.status.code() == Some(2) && trouble.contains("http.token_file"), "{}: {trouble}", all.status);
    let mut page = open.send("GET", "/v1/models", &[("origin", "http://evil.example")], &[], 0).await?;
    ensure!(client::head(&mut page).await?.status == 403);
    Ok(())
}

/// What `/health` says while stage-llm's process is there and its model is not: it is stopped as soon as it runs.
async fn health_while_loading(rig: &Rig, client: &Client) -> anyhow::Result<serde_json::Value> {
    until("stage-llm has a process", async || Ok(!rig.pids(StageName::Llm).is_empty())).await?;
    let loading = rig.pids(StageName::Llm)[0];
    signal(loading, "STOP")?;
    let health = client.get("/health").await;
    signal(loading, "CONT")?;
    Ok(health?.expect(503)?.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_which_stage_is_missing_until_it_is_loaded_again_and_down_ends_it_all() -> anyhow::Result<()> {
    let (mut rig, client) = start(Setup::default()).await?;
    until("all stages are ready", async || Ok(client.get("/health").await?.status == 200)).await?;
    let freed = client.post("/v1/unload", &json!({ "stage": "llm" })).await?.expect(200)?.json();
    ensure!(freed["unloaded"] == json!(["llm"]) && freed["processes"] == 1, "{freed}");
    ensure!(freed["freed_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{freed}");
    let health = client.get("/health").await?.expect(503)?.json();
    ensure!(health["stages"]["llm"]["state"] == "unloaded", "{health}");
    ensure!(health["stages"]["llm"]["since_ms"].as_u64().is_some(), "{health}");
    ensure!(health["stages"]["decode"]["state"] == "ready", "{health}");
    client.get("/readyz").await?.expect(503)?;
    client.get("/livez").await?.expect(200)?;
    let load = json!({ "stage": "llm" });
    let (loaded, health) = tokio::join!(client.post("/v1/load", &load), health_while_loading(&rig, &client));
    let (loaded, health) = (loaded?.expect(200)?.json(), health?);
    ensure!(loaded["loaded"] == json!(["llm"]), "{loaded}");
    ensure!(health["stages"]["llm"]["state"] == "loading", "{health}");
    ensure!(health["stages"]["llm"]["since_ms"].as_u64().is_some(), "{health}");
    client.get("/health").await?.expect(200)?;
    client.post("/v1/load", &json!({ "stage": "nothing" })).await?.problem(400, "bad_request")?;

    let down =
        |state: &std::path::Path| Command::new(vidi()?).env("VIDI_STATE", state).arg("down").output().context("down");
    let output = down(&rig.dir.path().join("state"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && said.starts_with("stopped: process "), "{said}{output:?}");
    ensure!(client.get("/livez").await.is_err(), "somebody still answers");
    ensure!(rig.stop().await? < Duration::from_secs(1), "`vidi up` was still there");
    let output = down(&rig.dir.path().join("state"))?;
    ensure!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with("nothing to stop"),
        "{output:?}"
    );
    Ok(())
}
