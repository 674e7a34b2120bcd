//! The language model on text alone against candle's Gemma 2.
//!
//! Where candle's differs from the released model, and so from ours:
//! - scores are scaled by `head_dim` instead of `query_pre_attn_scalar` (the same in the real model and in `realdims`);
//! - the output head is always the embedding;
//! - the sliding window is on every layer instead of the even ones, one key wider, and absent while tokens are generated.
//!
//! The first two can be made up for in the weights; the third is a difference that only short texts do not show.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_transformers::models::gemma2;
use config::{LlmConfig, MediaProducts};
use model::checkpoint::Checkpoint;
use stage_llm::LanguageModel;
use stage_llm::language::cache::VideoCache;
use stage_llm::text::sample::Sampler;
use tests::parity::golden::Golden;

use super::checkpoint::{InMemory, agree, differ, golden, opened, weights};

/// Largest relative rms error of logits: two f32 implementations that sum in another order (measured 4.4e-7 after one layer
/// to 2.9e-6 over 24 tokens after a prompt of 188). The smallest mistake that is tried, another epsilon, makes 1.1e-4.
const TOLERANCE: f64 = 1e-5;

/// An answer: its tokens, and the logits `[n, vocabulary]` that each was chosen from.
struct Answer {
    ids: Vec<u32>,
    logits: Tensor,
}

/// What our model answers greedily, in `tokens` tokens.
fn ours(checkpoint: &Arc<Checkpoint>, prompt: &[u32], tokens: usize) -> Answer {
    let (w, llm) = (weights(checkpoint), LlmConfig::default());
    let model = LanguageModel::new(checkpoint.config(), &w, &llm, MediaProducts::Dense).unwrap();
    let (mut text, video) = (model.text_cache(prompt.len() + tokens).unwrap(), VideoCache::default());
    let mut sampler = Sampler::new(0.0, 1.0, 0);
    let (mut ids, mut steps) = (Vec::new(), Vec::new());
    let mut logits = model.prefill(prompt, &mut text, &video, &mut ()).unwrap();
    loop {
        ids.push(sampler.next(&logits.to_vec1::<f32>().unwrap()).unwrap());
        steps.push(logits);
        if ids.len() == tokens {
            return Answer { ids, logits: Tensor::stack(&steps, 0).unwrap() };
        }
        logits = model.decode(ids[ids.len() - 1], &mut text, &video).unwrap();
    }
}

/// What candle's model answers greedily. Its head is the embedding from row `head` on: see [`own_head`].
fn peer(model: &InMemory, head: usize, prompt: &[u32], tokens: usize) -> Answer {
    let config: gemma2::Config = serde_json::from_value(model.config.clone()).unwrap();
    let mut peer = gemma2::Model::new(false, &config, model.peer()).unwrap();
    let mut sampler = Sampler::new(0.0, 1.0, 0);
    let (mut ids, mut steps, mut read) = (Vec::new(), Vec::new(), 0);
    let mut input = prompt.to_vec();
    while ids.len() < tokens {
        let ids_in = Tensor::new(&input[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = peer.forward(&ids_in, read).unwrap().flatten_all().unwrap();
        let logits = logits.narrow(0, head, config.vocab_size - head).unwrap();
        read += input.len();
        input = vec![sampler.next(&logits.to_vec1::<f32>().unwrap()).unwrap()];
        ids.extend(&input);
        steps.push(logits);
    }
    Answer { ids, logits: Tensor::stack(&steps, 0).unwrap() }
}

/// Makes up for candle's scores being divided by the root of `head_dim`, in the projection of the queries.
fn scaled(model: &mut InMemory) {
    let number = |key: &str| model.number("", key);
    let (layers, scale) =
        (number("num_hidden_layers"), number("head_dim") as f64 / number("query_pre_attn_scalar") as f64);
    for layer in 0..layers {
        model.change(&format!("model.layers.{layer}.self_attn.q_proj.weight"), |q| q * scale.sqrt());
    }
}

/// Puts the rows of `lm_head` under those of the embedding, of which candle makes its head: where they begin.
fn own_head(model: &mut InMemory) -> usize {
    let (rows, head) = (model.number("", "vocab_size"), model.tensors["lm_head.weight"].clone());
    model.change("model.embed_tokens.weight", |embedding| Tensor::cat(&[embedding, &head], 0));
    model.config["vocab_size"] = (2 * rows).into();
    rows
}

fn prompt(case: &str) -> Vec<u32> {
    Golden::read(&golden("cases").join(case)).unwrap().facts.text_token_ids
}

#[track_caller]
fn agree_in_every_token(what: &str, ours: &Answer, theirs: &Answer) {
    agree(&format!("{what}, {} tokens", ours.ids.len()), &ours.logits, &theirs.logits, TOLERANCE);
    assert_eq!(ours.ids, theirs.ids, "{what}");
}

#[test]
fn a_prompt_of_the_real_head_size_is_answered_as_by_candles_gemma_2() {
    let (model, prompt) = (InMemory::read("realdims"), prompt("realdims"));
    let ours = ours(&opened("realdims"), &prompt, 24);
    agree_in_every_token("Gemma 2, realdims", &ours, &peer(&model, 0, &prompt, 24));
}

#[test]
fn another_layer_rotation_cap_gelu_or_epsilon_of_candles_gemma_2_is_seen() {
    let (model, prompt) = (InMemory::read("realdims"), prompt("realdims"));
    let ours = ours(&opened("realdims"), &prompt, 1);
    let wrong = |key: &str, value: serde_json::Value, least: f64| {
        let mut model = model.clone();
        let what = format!("Gemma 2, realdims, with {key} {value}");
        model.config[key] = value;
        differ(&what, &ours.logits, &peer(&model, 0, &prompt, 1).logits, least, 2.0);
    };
    wrong("num_hidden_layers", 1.into(), 0.2);
    wrong("rope_theta", 11_000.0.into(), 3e-2);
    wrong("attn_logit_softcapping", 45.0.into(), 1e-3);
    wrong("final_logit_softcapping", 31.0.into(), 1e-3);
    wrong("hidden_activation", "gelu".into(), 1e-4);
    wrong("rms_norm_eps", 1e-5.into(), 5e-5);
}

#[test]
fn candles_gemma_2_scales_scores_by_the_size_of_a_head() {
    let (mut model, prompt) = (InMemory::read("tied"), prompt("basic"));
    let ours = ours(&opened("tied"), &prompt[..8], 1);
    let theirs = peer(&model, 0, &prompt[..8], 1);
    differ("Gemma 2, tied, 1/sqrt(24) against 1/sqrt(20)", &ours.logits, &theirs.logits, 1e-2, 0.2);
    scaled(&mut model);
    agree_in_every_token("Gemma 2, tied, queries scaled", &ours, &peer(&model, 0, &prompt[..8], 1));
}

#[test]
fn candles_gemma_2_takes_the_embedding_for_its_head() {
    let (mut model, prompt) = (InMemory::read("untied"), prompt("time_ranges"));
    scaled(&mut model);
    let ours = ours(&opened("untied"), &prompt, 1);
    let theirs = peer(&model, 0, &prompt, 1);
    differ("Gemma 2, untied, the embedding as head", &ours.logits, &theirs.logits, 0.5, 3.0);
    let head = own_head(&mut model);
    agree_in_every_token("Gemma 2, untied, its own head", &ours, &peer(&model, head, &prompt, 1));
}

#[test]
fn as_long_as_a_text_fits_the_window_it_is_answered_as_by_candles_gemma_2_and_no_longer() {
    for (checkpoint, case, length) in [("tied", "basic", 8), ("untied", "time_ranges", 30)] {
        let mut model = InMemory::read(checkpoint);
        scaled(&mut model);
        let head = if checkpoint == "untied" { own_head(&mut model) } else { 0 };
        let prompt = &prompt(case)[..length];
        let fits = model.number("", "sliding_window") - prompt.len() + 1;
        let (ours, theirs) = (ours(&opened(checkpoint), prompt, fits + 1), peer(&model, head, prompt, fits + 1));
        let first = |answer: &Answer| Answer {
            ids: answer.ids[..fits].to_vec(),
            logits: answer.logits.narrow(0, 0, fits).unwrap(),
        };
        agree_in_every_token(&format!("Gemma 2, {checkpoint}, up to the window"), &first(&ours), &first(&theirs));
        let [ours, theirs] = [ours, theirs].map(|a| a.logits.get(fits).unwrap());
        differ(&format!("Gemma 2, {checkpoint}, one token more"), &ours, &theirs, 1e-2, 0.5);
    }
}

#[test]
fn a_prompt_longer_than_the_window_is_read_as_by_the_oracle_and_otherwise_than_by_candles_gemma_2() {
    let golden = Golden::read(&golden("cases/text_alone")).unwrap();
    let prompt = &golden.facts.text_token_ids;
    let mut model = InMemory::read("tied");
    assert_eq!((prompt.len(), model.number("", "sliding_window")), (188, 16));
    let ours = ours(&opened("tied"), prompt, golden.facts.generated_token_ids.len());
    assert_eq!(ours.ids, golden.facts.generated_token_ids);
    let first = ours.logits.get(0).unwrap();
    let oracle = golden.tensor("prefill_logits").unwrap();
    assert_eq!(oracle.stride, 1);
    let oracle = Tensor::new(&oracle.values[..], &Device::Cpu).unwrap();
    agree("Gemma 2, tied, 188 tokens: ours against the oracle", &first, &oracle, TOLERANCE);
    scaled(&mut model);
    let theirs = peer(&model, 0, prompt, 1).logits.get(0).unwrap();
    differ("Gemma 2, tied, 188 tokens: candle's against the oracle", &theirs, &oracle, 0.3, 2.0);
}

#[test]
fn without_a_window_a_long_prompt_is_answered_as_by_candles_gemma_2() {
    let (mut model, prompt) = (InMemory::read("tied"), prompt("text_alone"));
    model.config["sliding_window"] = 4096.into();
    let ours = ours(&model.opened(), &prompt, 24);
    scaled(&mut model);
    agree_in_every_token("Gemma 2, tied, 188 tokens, a window of 4096", &ours, &peer(&model, 0, &prompt, 24));
}

#[test]
fn the_window_of_one_layer_is_candles_but_for_one_key() {
    let (mut model, prompt) = (InMemory::read("tied"), prompt("text_alone"));
    model.config["num_hidden_layers"] = 1.into();
    let checkpoint = model.opened();
    scaled(&mut model);
    for length in [16, 17, 18, 40, 188] {
        let prompt = &prompt[..length];
        let ours = ours(&checkpoint, prompt, 1);
        let mut theirs = |window: usize| {
            model.config["sliding_window"] = window.into();
            peer(&model, 0, prompt, 1)
        };
        agree_in_every_token(&format!("Gemma 2, one layer, 16 keys of {length}"), &ours, &theirs(15));
        if length > 16 {
            let what = format!("Gemma 2, one layer, 16 keys against 17 of {length}");
            // Measured 1e-2, and 0.8 at 188, where the key too many has half of one head's attention.
            differ(&what, &ours.logits, &theirs(16).logits, 3e-3, 1.5);
        }
    }
}
