//! The wires of others: /inference as services have asked before, and OpenAI's chats.

use anyhow::{Context, ensure};
use demo_video::truth::Question;
use serde_json::{Value, json};
use tests::harness::Rig;

use super::client::Client;
use super::rig::{Alone, clip, with_pipeline};
use super::{SECONDS, ensure_true, events, question};

/// Whether a text is `START-END, ...` of times of this many characters.
fn are_ranges(text: &str, length: usize) -> bool {
    let is_time = |time: &str| {
        time.len() == length
            && time.chars().all(|c| c.is_ascii_digit() || c == ':' || c == '.')
            && time.matches(':').count() == 2
    };
    text.split(", ").all(|range| range.split_once('-').is_some_and(|(start, end)| is_time(start) && is_time(end)))
}

#[test]
fn services_that_asked_an_earlier_server_get_the_answers_that_they_know() -> anyhow::Result<()> {
    with_pipeline(earlier_wire)
}

async fn earlier_wire(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let path = video.to_string_lossy().into_owned();
    let asked = question(&truth, "retrieval")?;
    let bytes = std::fs::read(&video)?;
    let texts = [("question", asked.query.as_str()), ("task", "retrieval"), ("max_new_tokens", "24")];
    let answer = client.form("/inference", &texts, Some(("video", &bytes))).await?.expect(200)?.json();
    let text = answer["answer"].as_str().context("no answer")?;
    ensure!(are_ranges(text, "00:00:00.00".len()), "{answer}");
    let job = answer["job"].as_str().context("no job")?;
    let done = client.get(&format!("/v1/jobs/{job}")).await?.expect(200)?.json();
    ensure_true(asked, &done["result"])?;
    ensure!(done["result"]["ranges"] == answer["ranges"] && done["resolution_s"] == answer["resolution_s"], "{answer}");

    let asked = question(&truth, "qa")?;
    let texts = [("video_path", path.as_str()), ("question", &asked.query), ("task", "vqa"), ("job", "words")];
    let answer = client.form("/inference", &texts, None).await?.expect(200)?.json();
    let done = client.get("/v1/jobs/words").await?.expect(200)?.json();
    ensure_true(asked, &done["result"])?;
    ensure!(answer["answer"] == done["result"]["text"], "{answer}");

    // A container sees it elsewhere.
    let map = format!("http.path_map=[\"/app/media={}\"]", rig.media().display());
    let gateway = Alone::start(rig, "mapped", &[&map], &[]).await?;
    let texts = [("video_path", "/app/media/5.mp4"), ("question", asked.query.as_str()), ("task", "vqa")];
    let mapped = gateway.client.form("/inference", &texts, None).await?.expect(200)?.json();
    ensure!(mapped["answer"] == answer["answer"], "{mapped} and {answer}");

    let refused = async |path: &str| {
        client.form("/inference", &[("video_path", path), ("question", "a hum"), ("task", "retrieval")], None).await
    };
    let forbidden = refused("/etc/passwd").await?.problem(403, "forbidden_path")?;
    ensure!(forbidden["stage"] == "decode", "{forbidden}");
    refused(&rig.media().join("none.mp4").to_string_lossy()).await?.problem(404, "media_not_found")?;
    std::fs::write(rig.media().join("text.mp4"), "no video")?;
    refused(&rig.media().join("text.mp4").to_string_lossy()).await?.problem(415, "unsupported_media")?;
    Ok(())
}

#[test]
fn a_chat_about_a_video_is_answered_whole_and_in_chunks() -> anyhow::Result<()> {
    with_pipeline(chats)
}

async fn chats(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let models = client.get("/v1/models").await?.expect(200)?.json();
    let model = models["data"][0]["id"].as_str().context("no model")?.to_owned();
    let url = format!("file://{}", video.display());
    let chat = |content: Value, more: Value| {
        let mut body =
            json!({ "model": model, "messages": [{ "role": "user", "content": content }], "max_tokens": 24 });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    };

    let asked = question(&truth, "retrieval")?;
    let text = json!({ "type": "text", "text": asked.query });
    let part = json!({ "type": "video_url", "video_url": { "url": url }, "uuid": "clip" });
    let body = chat(json!([part, text]), json!({ "task": "retrieval" }));
    let answer = client.post("/v1/chat/completions", &body).await?.expect(200)?.json();
    let content = answer["choices"][0]["message"]["content"].as_str().context("no content")?;
    ensure!(answer["object"] == "chat.completion" && are_ranges(content, "00:00:00".len()), "{answer}");
    let usage = &answer["usage"];
    let details = &usage["prompt_tokens_details"];
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    ensure!(count(&details["image_tokens"]) > 0 && count(&details["audio_tokens"]) > 0, "{usage}");
    ensure!(
        count(&usage["total_tokens"]) == count(&usage["prompt_tokens"]) + count(&usage["completion_tokens"]),
        "{usage}"
    );
    let job = answer["vidi"]["job"].as_str().context("no job")?;
    ensure_true(asked, &client.get(&format!("/v1/jobs/{job}")).await?.json()["result"])?;

    // The same video by its name, in chunks.
    let asked = question(&truth, "qa")?;
    let part = json!({ "type": "video_url", "video_url": null, "uuid": "clip" });
    let text = json!({ "type": "text", "text": asked.query });
    let more = json!({ "stream": true, "stream_options": { "include_usage": true }, "job": "chunks" });
    let body = chat(json!([part, text]), more).to_string();
    let mut stream =
        client.stream("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await?;
    ensure!(stream.head.status == 200, "{:?}", stream.head);
    let (mut said, mut chunks, mut is_done) = (String::new(), Vec::new(), false);
    while let Some((_, data)) = stream.next().await? {
        ensure!(!is_done, "{data} behind [DONE]");
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(&data)?;
        said += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        chunks.push(chunk);
    }
    let done = client.get("/v1/jobs/chunks").await?.json();
    ensure_true(asked, &done["result"])?;
    ensure!(is_done && done["result"]["text"] == said.trim(), "{said:?} and {done}");
    ensure!(chunks.iter().any(|chunk| chunk["choices"][0]["finish_reason"] == "stop"), "{chunks:?}");
    ensure!(chunks.last().is_some_and(|chunk| count(&chunk["usage"]["completion_tokens"]) > 0), "{chunks:?}");

    let part = json!({ "type": "video_url", "video_url": null, "uuid": "unknown" });
    let unknown = chat(json!([part, text]), Value::Null);
    client.post("/v1/chat/completions", &unknown).await?.problem(404, "not_found")?;
    let part = json!({ "type": "video_url", "video_url": { "url": "https://example.com/v.mp4" } });
    let foreign = chat(json!([part, text]), Value::Null);
    client.post("/v1/chat/completions", &foreign).await?.problem(403, "forbidden_path")?;
    let tools = chat(json!([part, text]), json!({ "tools": [{}] }));
    client.post("/v1/chat/completions", &tools).await?.problem(400, "bad_request")?;
    Ok(())
}

#[test]
fn several_questions_of_one_request_are_each_answered_truly_on_every_wire() -> anyhow::Result<()> {
    with_pipeline(several)
}

async fn several(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = rig.demo_video(14, SECONDS)?;
    let path = video.to_string_lossy().into_owned();
    let asked: Vec<&Question> = truth.questions.iter().filter(|q| q.task == "retrieval").take(3).collect();
    let queries = json!(asked.iter().map(|question| &question.query).collect::<Vec<_>>());
    let body = json!({ "job": "several", "video": path, "queries": queries, "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    let (_, result) = events(client, "several", None).await?;
    let answers = result["answers"].as_array().context("no answers")?;
    ensure!(answers.len() == asked.len(), "{result}");
    for (question, answer) in asked.iter().zip(answers) {
        let mut alone = result.clone();
        (alone["text"], alone["ranges"]) = (answer["text"].clone(), answer["ranges"].clone());
        ensure_true(question, &alone)?;
    }

    let lines = |text: &Value| text.as_str().map_or(0, |text| text.split('\n').count());
    let texts = [("video_path", path.as_str()), ("task", "retrieval"), ("queries", &queries.to_string())];
    let answer = client.form("/inference", &texts, None).await?.expect(200)?.json();
    ensure!(lines(&answer["answer"]) == asked.len() && answer["ranges"] == result["ranges"], "{answer}");
    ensure!(answer["supported"] == "trained" && answer["answers"][0]["query"] == asked[0].query.as_str(), "{answer}");
    let part = json!({ "type": "video_url", "video_url": { "url": path } });
    let chat = |more: Value| json!({ "task": more["task"], "queries": more["queries"], "messages": [{ "role": "user", "content": [part] }] });
    let body = chat(json!({ "task": "retrieval", "queries": queries }));
    let answer = client.post("/v1/chat/completions", &body).await?.expect(200)?.json();
    ensure!(lines(&answer["choices"][0]["message"]["content"]) == asked.len(), "{answer}");
    ensure!(answer["vidi"]["answers"].as_array().map(Vec::len) == Some(asked.len()), "{answer}");

    // Made of several questions: the ranges are those of the queries, each with a title, whatever this model makes of that.
    let body = chat(json!({ "task": "highlights", "queries": queries }));
    let answer = client.post("/v1/chat/completions", &body).await?.expect(200)?.json();
    let ranges = answer["vidi"]["ranges"].as_array().context("no ranges")?;
    ensure!(answer["vidi"]["supported"] == "composite" && !ranges.is_empty(), "{answer}");
    ensure!(ranges.iter().all(|range| range["title"].is_string()), "{answer}");

    let models = client.get("/v1/models").await?.expect(200)?.json();
    let tasks = models["data"][0]["tasks"].as_array().context("no tasks")?;
    let supported = |name: &str| tasks.iter().find(|task| task["name"] == name).map(|task| task["supported"].clone());
    ensure!(
        supported("qa") == Some(json!("trained")) && supported("grounding") == Some(json!("experimental")),
        "{models}"
    );
    let both = json!({ "video": path, "query": "a hum", "queries": queries });
    client.post("/v1/jobs", &both).await?.problem(400, "bad_request")?;
    // Read behind a byte-order mark and white space; what is no JSON is told by line and column.
    for (text, said) in [
        (format!("\u{feff} \r\n{both}"), "query and queries"),
        ("{\n \"video\": \"/x.mp4\", \"fps\": NaN}".to_owned(), "line 2 column"),
        ("{\n \"video\": \"/x.m".to_owned(), "line 2 column"),
    ] {
        let refused = client.ask("POST", "/v1/jobs", "application/json", text.as_bytes()).await?;
        ensure!(refused.json()["message"].as_str().is_some_and(|message| message.contains(said)), "{refused:?}");
        refused.problem(400, "bad_request")?;
    }
    Ok(())
}

#[test]
fn chapters_and_boxes_are_asked_for_as_any_other_task() -> anyhow::Result<()> {
    with_pipeline(parts_and_boxes)
}

async fn parts_and_boxes(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let body = json!({ "job": "chapters", "video": video, "task": "chapters", "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    let (_, result) = events(client, "chapters", None).await?;
    ensure!(result["kind"] == "result" && result["supported"] == "composite", "{result}");
    // Nothing in a made video is a cut: it is one chapter, which the model's words name.
    let ranges = result["ranges"].as_array().context("no ranges")?;
    ensure!(ranges.len() == 1 && ranges[0]["start_s"] == 0.0, "{result}");
    ensure!(ranges[0]["end_s"].as_f64().is_some_and(|end| (end - f64::from(truth.seconds)).abs() < 0.5), "{result}");
    ensure!(ranges[0]["title"] == result["answers"][0]["text"] && ranges[0]["title"] != "", "{result}");

    let asked = question(&truth, "retrieval")?;
    let body =
        json!({ "job": "boxes", "video": video, "task": "grounding", "query": asked.query, "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    let (_, result) = events(client, "boxes", None).await?;
    // This model has never seen a box: it is said, and what is no box is not made one.
    ensure!(result["kind"] == "result" && result["supported"] == "experimental", "{result}");
    ensure!(result["boxes"].as_array().is_none_or(Vec::is_empty) && result["text"] != "", "{result}");
    Ok(())
}
