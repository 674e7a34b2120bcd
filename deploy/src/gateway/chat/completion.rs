//! An answer in OpenAI's shape.

use protocol::event::{Finish, JobResult};
use protocol::message::JobRequest;
use runtime::bus::events::now_ms;
use serde_json::{Value, json};
use stage_llm::text::reading::Parser;
use stage_llm::text::registry::Tasks;
use stage_llm::text::task::Task;

use crate::export::clock::resolution_of;
use crate::gateway::clock;

/// What all bodies about one answer have in common.
pub struct Completion {
    id: String,
    job: String,
    created_s: u64,
    model: String,
    task: String,
    grows: bool,
}

impl Completion {
    /// Completion of a job by a model that knows these tasks.
    pub fn new(request: &JobRequest, model: String, tasks: &Tasks) -> Self {
        let (job, task) = (request.job.to_string(), request.task.clone());
        let is_text = |task: &Task| task.parser == Parser::Text && task.ranges.is_none();
        let grows = tasks.get(&task).is_ok_and(is_text) && request.queries.is_empty() && request.parser.is_none();
        Completion { id: format!("chatcmpl-{job}"), job, created_s: now_ms() / 1000, model, task, grows }
    }

    /// Whether the answer is the model's own words to one question, as they come; others are known at their end alone.
    pub fn grows(&self) -> bool {
        self.grows
    }

    /// Text of an answer; of ranges `HH:MM:SS-HH:MM:SS, ...`, of Vidi 7B's `HH:MM:SS.00-HH:MM:SS.00, ...`.
    pub fn text(&self, result: &JobResult) -> String {
        clock::text(result, clock::by_reference(&result.parser))
    }

    /// Body of the whole answer.
    pub fn whole(&self, result: &JobResult) -> Value {
        let choice = json!({
            "index": 0,
            "message": { "role": "assistant", "content": self.text(result) },
            "finish_reason": finish(result),
            "logprobs": null,
        });
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created_s,
            "model": self.model,
            "choices": [choice],
            "usage": usage(result),
            "vidi": self.own(result),
        })
    }

    /// Chunk with a piece of the answer: the role first, then text.
    pub fn chunk(&self, delta: Value) -> Value {
        self.any_chunk(json!([{ "index": 0, "delta": delta, "finish_reason": null }]))
    }

    /// Chunk that ends the answer.
    pub fn last_chunk(&self, result: &JobResult) -> Value {
        let mut chunk = self.any_chunk(json!([{ "index": 0, "delta": {}, "finish_reason": finish(result) }]));
        chunk["vidi"] = self.own(result);
        chunk
    }

    /// Chunk behind it that counts tokens.
    pub fn usage_chunk(&self, result: &JobResult) -> Value {
        let mut chunk = self.any_chunk(json!([]));
        chunk["usage"] = usage(result);
        chunk
    }

    fn any_chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        })
    }

    /// What OpenAI's shape has no place for.
    fn own(&self, result: &JobResult) -> Value {
        json!({
            "job": self.job,
            "task": self.task,
            "text": result.text,
            "ranges": result.ranges,
            "resolution_s": resolution_of(result),
            "cached": result.cached,
            "supported": result.supported,
            "answers": result.answers,
            "boxes": result.boxes,
            "reason": result.reason,
            "reference_text": result.reference_text,
            "notes": result.notes,
        })
    }
}

fn finish(result: &JobResult) -> &'static str {
    match result.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// Tokens of an answer and of its video. A result does not count the tokens of its question, so they are not among them.
fn usage(result: &JobResult) -> Value {
    let image = result.plan.image.as_ref().map_or(0, |image| image.tokens);
    let audio = result.plan.audio.as_ref().map_or(0, |audio| audio.tokens);
    let of_several: usize = result.answers.iter().map(|answer| answer.token_ids.len()).sum();
    let written = (result.token_ids.len() + of_several) as u64;
    let cached = if result.cached.is_known() { image + audio } else { 0 };
    json!({
        "prompt_tokens": image + audio,
        "completion_tokens": written,
        "total_tokens": image + audio + written,
        "prompt_tokens_details": { "image_tokens": image, "audio_tokens": audio, "cached_tokens": cached },
        "completion_tokens_details": { "text_tokens": written },
    })
}
