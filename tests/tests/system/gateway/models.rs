//! Two models on one broker, each in a pipeline of its own, behind one gateway: a request names the one that answers.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tests::harness::{Beside, Setup};

use super::rig::{clip, start};
use super::{ensure_true, events, question, until};

/// First part of the second pipeline's subjects.
const PREFIX: &str = "seven.v1";
/// Name of the second model.
const SEVEN: &str = "random:7b-tiny";

#[tokio::test(flavor = "multi_thread")]
async fn each_model_answers_where_it_is_named_and_the_gateways_own_where_none_is() -> anyhow::Result<()> {
    let set = vec![format!("http.prefixes=[{PREFIX:?}]")];
    let (rig, client) = start(Setup { model: Some("demo".into()), keep_video: true, set, ..Setup::default() }).await?;
    // Whose stage-llm was never heard of may have any name.
    let early = client.post("/v1/jobs", &json!({ "model": SEVEN, "video": "/v.mp4", "query": "x" })).await?;
    let early = early.problem(503, "unavailable")?;
    ensure!(early["message"].as_str().is_some_and(|said| said.contains(PREFIX)), "{early}");

    let set = vec![format!("model.weights={SEVEN}")];
    let seven = Beside::start(&rig, PREFIX, Setup { model: None, set, ..Setup::default() }).await?;
    let models = client.get("/v1/models").await?.expect(200)?.json();
    let of = |name: &str| -> Vec<&Value> {
        models["data"].as_array().into_iter().flatten().map(|model| &model[name]).collect()
    };
    ensure!(of("id") == ["demo-model", SEVEN] && of("family") == ["9b", "7b"], "{models}");
    ensure!(of("prefix") == ["vidi.v1", PREFIX], "{models}");
    let supported = |model: usize, task: &str| {
        let tasks = models["data"][model]["tasks"].as_array();
        tasks.and_then(|tasks| tasks.iter().find(|one| one["name"] == task)).map(|one| one["supported"].clone())
    };
    ensure!(supported(0, "qa") == Some(json!("trained")) && supported(1, "qa") == Some(json!("experimental")));

    let (video, truth) = clip(&rig).await?;
    let asked = question(&truth, "retrieval")?;
    let ask = |job: &str, model: Value| json!({ "job": job, "model": model, "video": video, "query": asked.query, "max_new_tokens": 24 });
    for (job, model, name) in [
        ("own", Value::Null, "demo-model"),
        ("vidi", json!("vidi"), "demo-model"),
        ("nine", json!("demo-model"), "demo-model"),
        ("seven", json!(SEVEN), SEVEN),
        ("prefix", json!(PREFIX), SEVEN),
    ] {
        client.post("/v1/jobs", &ask(job, model)).await?.expect(202)?;
        let (ids, last) = events(&client, job, None).await.with_context(|| seven.log())?;
        ensure!(last["kind"] == "result" && last["model"]["name"] == name, "{job}: {last}");
        ensure!(ids == (0..ids.len() as u64).collect::<Vec<_>>(), "{ids:?}");
        let parser = if name == SEVEN { "reference-7b" } else { "reference" };
        ensure!(last["parser"] == parser && last["supported"] == "trained", "{last}");
        let done = client.get(&format!("/v1/jobs/{job}")).await?.expect(200)?.json();
        ensure!(done["state"] == "done" && done["result"]["model"]["name"] == name, "{done}");
        if name != SEVEN {
            ensure_true(asked, &done["result"])?;
        }
        client.get(&format!("/v1/jobs/{job}/export?format=csv")).await?.expect(200)?;
    }
    client.post("/v1/jobs", &ask("own", json!(SEVEN))).await?.problem(409, "conflict")?;
    let unknown = client.post("/v1/jobs", &ask("none", json!("gpt"))).await?.problem(404, "not_found")?;
    let said = unknown["message"].as_str().unwrap_or_default();
    ensure!(said.contains("demo-model") && said.contains(SEVEN), "{unknown}");

    let content = json!([{ "type": "video_url", "video_url": { "url": video } }, { "type": "text", "text": "what?" }]);
    let chat = json!({ "model": SEVEN, "messages": [{ "role": "user", "content": content }], "max_tokens": 8 });
    let answer = client.post("/v1/chat/completions", &chat).await?.expect(200)?.json();
    ensure!(answer["model"] == SEVEN && answer["vidi"]["supported"] == "experimental", "{answer}");
    let path = video.to_string_lossy();
    let form = [("video_path", &*path), ("question", "what?"), ("model", SEVEN), ("max_new_tokens", "8")];
    client.form("/inference", &form, None).await?.expect(200)?;

    // Each has its own processes.
    let health = |model: &str| format!("/health?model={model}");
    client.get(&health(SEVEN)).await?.expect(200)?;
    let freed = client.post("/v1/unload", &json!({ "model": SEVEN, "stage": "llm" })).await?.expect(200)?.json();
    ensure!(freed["processes"] == 1, "{freed}");
    let down = client.get(&health(SEVEN)).await?.expect(503)?.json();
    ensure!(down["stages"]["llm"]["state"] == "unloaded", "{down}");
    client.get("/health").await?.expect(200)?;
    let metrics = client.get("/metrics").await?.expect(200)?.text();
    for (prefix, state) in [("vidi.v1", "ready"), (PREFIX, "unloaded")] {
        let line = format!("vidi_stage_state{{stage=\"llm\",state={state:?},prefix={prefix:?}}} 1\n");
        ensure!(metrics.contains(&line), "{line}: {metrics}");
    }
    client.post("/v1/load", &json!({ "model": SEVEN })).await?.expect(200)?;
    until("it is back", async || Ok(client.get(&health(SEVEN)).await?.status == 200)).await
}
