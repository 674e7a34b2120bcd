//! Tests of the model: what chunking, order and repetition must not change, and which tensors it asks for.

use std::collections::BTreeSet;

use crate::fixture::{HIDDEN, Model, random};
use candle_core::{DType, Result, Tensor};
use config::{LlmConfig, MediaProducts};
use model::checkpoint::Weights;
use model::config_json::{Family, ModelConfig};
use protocol::event::Finish;
use protocol::message::Modality;
use serde_json::json;
use stage_llm::job::steps::{Pace, Steps};
use stage_llm::job::voice::{Asked, Taken};
use stage_llm::language::LanguageModel;
use stage_llm::language::cache::{MediaCache, TextCache, VideoCache};
use stage_llm::language::choose::first_largest_of;
use stage_llm::language::observe::{Boundary, Observe};
use stage_llm::text::task::Generation;

const PROMPT: [u32; 20] =
    [2, 106, 400, 401, 402, 108, 108, 390, 391, 392, 393, 394, 395, 396, 397, 398, 399, 107, 108, 106];

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn tokens(n: usize, seed: u64) -> Tensor {
    (random(&[n, HIDDEN], seed) * 0.05).unwrap()
}

/// Cache of a video whose tokens come in the given cuts `(offset, rows)`.
fn absorb(model: &LanguageModel, image: &Tensor, audio: &Tensor, cuts: &[(Modality, usize, usize)]) -> VideoCache {
    let cache = |n: usize| MediaCache::new(model.geometry(), n as u64, model.device()).unwrap();
    let mut video = VideoCache { image: Some(cache(image.dims()[0])), audio: Some(cache(audio.dims()[0])) };
    for &(modality, offset, rows) in cuts {
        let whole = if modality == Modality::Image { image } else { audio };
        for new in video.of_mut(modality).unwrap().claim(offset as u64..(offset + rows) as u64) {
            let chunk = whole.narrow(0, new.start as usize, (new.end - new.start) as usize).unwrap();
            model.absorb(modality, &chunk, new.start, &video, &mut ()).unwrap();
        }
    }
    video
}

fn logits(model: &LanguageModel, video: &VideoCache) -> Tensor {
    let mut text = model.text_cache(32).unwrap();
    model.prefill(&PROMPT, &mut text, video, &mut ()).unwrap()
}

/// Logits of three steps after the prompt and some more tokens, the texts' own: each text alone, or all together.
fn steps(model: &LanguageModel, video: &VideoCache, together: bool) -> Vec<Vec<Vec<f32>>> {
    let read = |more: usize| {
        let mut text = model.text_cache(40).unwrap();
        let prompt: Vec<u32> = PROMPT.into_iter().chain(380..380 + 3 * more as u32).collect();
        model.prefill(&prompt, &mut text, video, &mut ()).unwrap();
        text
    };
    let mut texts: Vec<TextCache> = (0..5).map(read).collect();
    let step = |number: u32| {
        let ids: Vec<u32> = (0..5).map(|text| 390 + 7 * number + text).collect();
        let mut each: Vec<&mut TextCache> = texts.iter_mut().collect();
        if together {
            return model.decode_each(&ids, &mut each, video).unwrap().to_vec2().unwrap();
        }
        let alone = |(id, text): (u32, &mut TextCache)| model.decode(id, text, video).unwrap().to_vec1().unwrap();
        ids.into_iter().zip(each).map(alone).collect()
    };
    (0..3).map(step).collect()
}

/// In f32 a product of more rows adds up in another order, and nothing else differs: the tokens are the same.
#[test]
fn logits_of_a_text_among_others_are_those_of_the_text_alone_but_for_the_order_of_sums() {
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    for model in both().map(|model| model.language_model(DType::F32)) {
        let video = absorb(&model, &image, &audio, &[(Modality::Image, 0, 50), (Modality::Audio, 0, 13)]);
        let (together, alone) = (steps(&model, &video, true), steps(&model, &video, false));
        for (together, alone) in together.iter().flatten().zip(alone.iter().flatten()) {
            let error = together.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-5, "{error}");
            assert_eq!(first_largest_of(together), first_largest_of(alone));
        }
    }
}

#[test]
fn a_step_of_several_texts_wants_a_token_for_each_and_room_in_each() {
    let model = Model::new().language_model(DType::F32);
    let video = absorb(&model, &tokens(5, 1), &tokens(3, 2), &[(Modality::Image, 0, 5), (Modality::Audio, 0, 3)]);
    let [mut wide, mut full] = [PROMPT.len() + 1, PROMPT.len()].map(|capacity| {
        let mut text = model.text_cache(capacity).unwrap();
        model.prefill(&PROMPT, &mut text, &video, &mut ()).unwrap();
        text
    });
    for (ids, error) in [(&[7][..], "1 tokens for 2 texts"), (&[7, 8][..], "free capacity of 0")] {
        let outcome = model.decode_each(ids, &mut [&mut wide, &mut full], &video);
        assert!(outcome.unwrap_err().to_string().contains(error));
    }
    assert!(model.decode_each(&[7], &mut [&mut wide], &video).is_ok());
}

/// A model of each family.
fn both() -> [Model; 2] {
    [Model::new(), Model::mistral()]
}

#[test]
fn chunks_in_any_order_and_more_than_once_give_what_the_whole_gives() {
    use Modality::{Audio, Image};
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    let cuts: [&[(Modality, usize, usize)]; 3] = [
        &[(Audio, 0, 13), (Image, 0, 50)],
        &[(Image, 30, 20), (Audio, 12, 1), (Image, 0, 1), (Image, 1, 29), (Audio, 0, 12)],
        &[
            (Image, 10, 20),
            (Image, 0, 40),
            (Audio, 3, 7),
            (Image, 10, 20),
            (Audio, 0, 13),
            (Image, 39, 11),
            (Audio, 0, 2),
        ],
    ];
    for model in both().map(|model| model.language_model(DType::F32)) {
        let expected = logits(&model, &absorb(&model, &image, &audio, &[(Image, 0, 50), (Audio, 0, 13)]));
        for cut in cuts {
            let got = logits(&model, &absorb(&model, &image, &audio, cut));
            assert!(worst(&got, &expected) < 1e-5, "{cut:?}: {}", worst(&got, &expected));
        }
    }
}

#[test]
fn matrices_kept_in_eight_bits_are_those_made_for_each_pass_and_are_planned_for() {
    use Modality::{Audio, Image};
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    for q in [config::WeightFormat::Dense, config::WeightFormat::Q8] {
        // Tensor cores take multiples of 16.
        let config = json!({ "hidden_size": 64, "intermediate_size": 96, "head_dim": 16 });
        let (config, weights) = Model::with(config, |_, t| t).weights(DType::F32);
        let model = |keep_fp8| {
            let llm = LlmConfig { keep_fp8, weights: q, ..LlmConfig::default() };
            let needs =
                Weights::survey(DType::F32, |w| LanguageModel::new(&config, w, &llm, MediaProducts::Fp8)).unwrap();
            let model = LanguageModel::new(&config, &weights, &llm, MediaProducts::Fp8).unwrap();
            let wide = |x: &Tensor| Tensor::cat(&[x, x], 1).unwrap();
            let video = absorb(&model, &wide(&image), &wide(&audio), &[(Image, 0, 50), (Audio, 0, 13)]);
            (logits(&model, &video), needs.iter().map(|need| need.bytes).sum::<u64>())
        };
        let ((kept, with), (made, without)) = (model(true), model(false));
        assert_eq!(kept.to_vec1::<f32>().unwrap(), made.to_vec1::<f32>().unwrap(), "{q:?}");
        // A byte each and four a row: keys and values, the folded output, gates and ups, downs.
        let layer = 2 * 32 * (64 + 4) + 64 * (32 + 4) + 2 * 96 * (64 + 4) + 64 * (96 + 4);
        assert_eq!(with - without, 4 * layer, "{q:?}");
    }
}

#[test]
fn every_modality_token_counts() {
    use Modality::{Audio, Image};
    let model = Model::new().language_model(DType::F32);
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    let all = [(Image, 0, 50), (Audio, 0, 13)];
    let before = logits(&model, &absorb(&model, &image, &audio, &all));
    let other = Tensor::cat(&[&image.narrow(0, 0, 49).unwrap(), &tokens(1, 3)], 0).unwrap();
    assert!(worst(&before, &logits(&model, &absorb(&model, &other, &audio, &all))) > 1e-4);
    let other = Tensor::cat(&[&tokens(1, 3), &audio.narrow(0, 1, 12).unwrap()], 0).unwrap();
    assert!(worst(&before, &logits(&model, &absorb(&model, &image, &other, &all))) > 1e-4);
}

#[test]
fn a_video_with_a_gap_is_not_answered_about() {
    let model = Model::new().language_model(DType::F32);
    let video = absorb(&model, &tokens(50, 1), &tokens(13, 2), &[(Modality::Image, 0, 20), (Modality::Audio, 0, 13)]);
    assert_eq!(video.first_gap(), Some((Modality::Image, 20..50)));
    let mut text = model.text_cache(32).unwrap();
    assert!(model.prefill(&PROMPT, &mut text, &video, &mut ()).is_err());
}

#[test]
fn decoding_token_by_token_gives_what_one_prefill_gives_beyond_the_window_too() {
    for model in both().map(|model| model.language_model(DType::F32)) {
        let video = absorb(&model, &tokens(9, 1), &tokens(4, 2), &[(Modality::Image, 0, 9), (Modality::Audio, 0, 4)]);
        let expected = logits(&model, &video);
        for first in [1, 5, 8, 19] {
            let mut text = model.text_cache(PROMPT.len()).unwrap();
            let mut got = model.prefill(&PROMPT[..first], &mut text, &video, &mut ()).unwrap();
            for &id in &PROMPT[first..] {
                got = model.decode(id, &mut text, &video).unwrap();
            }
            assert!(worst(&got, &expected) < 1e-5, "after {first}: {}", worst(&got, &expected));
            assert!(model.decode(5, &mut text, &video).is_err(), "the cache is full");
        }
    }
}

#[test]
fn only_even_layers_have_a_window() {
    let last = |c: serde_json::Value| {
        let model = Model::with(c, |_, t| t).language_model(DType::F32);
        let mut text = model.text_cache(32).unwrap();
        let mut ids = PROMPT;
        let a = model.prefill(&ids, &mut text, &VideoCache::default(), &mut ()).unwrap();
        ids[0] = 77;
        let mut text = model.text_cache(32).unwrap();
        worst(&a, &model.prefill(&ids, &mut text, &VideoCache::default(), &mut ()).unwrap())
    };
    // One layer, sliding: the first of 20 tokens is out of sight. Two layers: the second one sees all.
    assert_eq!(last(json!({"num_hidden_layers": 1, "sliding_window": 19})), 0.0);
    assert!(last(json!({"num_hidden_layers": 1, "sliding_window": 20})) > 1e-4);
    assert!(last(json!({"num_hidden_layers": 2, "sliding_window": 1})) > 1e-4);
}

#[test]
fn half_precision_stays_near_single() {
    use Modality::{Audio, Image};
    for checkpoint in both() {
        let (image, audio) = (tokens(50, 1), tokens(13, 2));
        let cuts = [(Image, 0, 50), (Audio, 0, 13)];
        let model = checkpoint.language_model(DType::F32);
        let expected = logits(&model, &absorb(&model, &image, &audio, &cuts));
        for (dtype, tolerance) in [(DType::F16, 0.02), (DType::BF16, 0.2)] {
            let model = checkpoint.language_model(dtype);
            let (image, audio) = (image.to_dtype(dtype).unwrap(), audio.to_dtype(dtype).unwrap());
            let got = logits(&model, &absorb(&model, &image, &audio, &cuts));
            assert!(worst(&got, &expected) < tolerance, "{dtype:?}: {}", worst(&got, &expected));
        }
    }
}

#[derive(Default)]
struct Seen(Vec<(Boundary, Vec<usize>)>);

impl Observe for Seen {
    fn see(&mut self, at: Boundary, value: &Tensor) -> Result<()> {
        self.0.push((at, value.dims().to_vec()));
        Ok(())
    }
}

#[test]
fn a_watcher_sees_every_boundary_with_its_offset() {
    let model = Model::new().language_model(DType::F32);
    let mut video =
        VideoCache { image: Some(MediaCache::new(model.geometry(), 5, model.device()).unwrap()), audio: None };
    let mut seen = Seen::default();
    for new in video.of_mut(Modality::Image).unwrap().claim(0..5) {
        model.absorb(Modality::Image, &tokens(5, 1), new.start, &video, &mut seen).unwrap();
    }
    let mut text = model.text_cache(32).unwrap();
    model.prefill(&PROMPT, &mut text, &video, &mut seen).unwrap();
    let image = (0..4).map(|i| (Boundary::MediaHidden(Modality::Image, i, 0), vec![5, HIDDEN]));
    let hidden = (0..5).map(|i| (Boundary::TextHidden(i), vec![20, HIDDEN]));
    let last = [(Boundary::TextFinalNorm, vec![20, HIDDEN]), (Boundary::PrefillLogitsAll, vec![20, 512])];
    assert_eq!(seen.0, image.chain(hidden).chain(last).collect::<Vec<_>>());
}

#[test]
fn the_surveys_of_the_released_models_are_the_oracles_lists() {
    for (family, list, count) in
        [(Family::Gemma2, "vidi15_9b_tensors.json", 464), (Family::Mistral, "vidi7b_tensors.json", 291)]
    {
        let path = format!("{}/../tests/oracle/{list}", env!("CARGO_MANIFEST_DIR"));
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let expected: BTreeSet<(String, Vec<usize>)> = list["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["part"] == "llm" && t["needed"] == true)
            .map(|t| (t["name"].as_str().unwrap().to_owned(), serde_json::from_value(t["shape"].clone()).unwrap()))
            .collect();
        let needs = Weights::survey(DType::F16, |w| {
            LanguageModel::new(&ModelConfig::of(family), w, &LlmConfig::default(), MediaProducts::Dense)
        })
        .unwrap();
        let asked: BTreeSet<(String, Vec<usize>)> = needs.iter().map(|n| (n.name.clone(), n.shape.clone())).collect();
        assert_eq!(needs.len(), count);
        assert_eq!(asked, expected, "{family:?}");
    }
}

#[test]
fn a_tied_configuration_wins_over_a_stray_head_and_a_missing_head_is_the_embedding() {
    let stray = |name: &str, t: Option<Tensor>| {
        if name == "stray lm_head" { Some(random(&[512, HIDDEN], 9)) } else { t }
    };
    let headless = |name: &str, t: Option<Tensor>| if name == "lm_head.weight" { None } else { t };
    let logits = |m: Model| logits(&m.language_model(DType::F32), &VideoCache::default());
    let tied = logits(Model::new());
    assert_eq!(worst(&tied, &logits(Model::with(json!({}), stray))), 0.0);
    assert_eq!(worst(&tied, &logits(Model::with(json!({"tie_word_embeddings": false}), headless))), 0.0);
    assert!(worst(&tied, &logits(Model::with(json!({"tie_word_embeddings": false}), |_, t| t))) > 0.1);
}

/// Tokens and end of the answers to prompts that grow together.
fn answers(
    model: &LanguageModel,
    video: &VideoCache,
    pace: Pace,
    end_tokens: &[u32],
    prompts: &[(&[u32], usize)],
) -> Vec<(Vec<u32>, Option<Finish>)> {
    let mut steps = Steps::new(model, video, end_tokens, pace);
    for (question, &(prompt, max_new_tokens)) in prompts.iter().enumerate() {
        let generation = Generation { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0 };
        steps.begin(Asked { job: 0, question }, prompt, generation, &mut ()).unwrap();
    }
    let mut answers = vec![(Vec::new(), None); prompts.len()];
    while !steps.is_empty() {
        for Taken { asked, token, finish } in steps.step(&mut ()).unwrap() {
            let (ids, ended) = &mut answers[asked.question];
            assert!(ended.is_none(), "a token after the end");
            ids.push(token.unwrap());
            *ended = finish;
        }
    }
    answers
}

#[test]
fn a_step_begun_before_its_tokens_are_known_gives_the_same_answers() {
    let model = Model::new().language_model(DType::F32);
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    let video = absorb(&model, &image, &audio, &[(Modality::Image, 0, 50), (Modality::Audio, 0, 13)]);
    let alone = |pace, end: &[u32], most| answers(&model, &video, pace, end, &[(&PROMPT, most)]).remove(0);
    let in_step = alone(Pace::InStep, &[], 9);
    assert_eq!((in_step.0.len(), in_step.1), (9, Some(Finish::Length)));
    assert_eq!(alone(Pace::Ahead, &[], 9), in_step);
    // An end token in the middle: what was computed after it is not told.
    let end = in_step.0[4];
    let stopped = alone(Pace::InStep, &[end], 9);
    assert_eq!((stopped.0.last(), stopped.1), (Some(&end), Some(Finish::Stop)));
    assert_eq!(alone(Pace::Ahead, &[end], 9), stopped);
    // Beside others of other lengths.
    let prompts: [(&[u32], usize); 4] = [(&PROMPT[..7], 3), (&PROMPT, 9), (&PROMPT[..11], 1), (&PROMPT[..5], 12)];
    for end in [&[][..], &[end]] {
        let single: Vec<_> =
            prompts.iter().map(|prompt| answers(&model, &video, Pace::InStep, end, &[*prompt]).remove(0)).collect();
        for pace in [Pace::InStep, Pace::Ahead] {
            assert_eq!(answers(&model, &video, pace, end, &prompts), single, "{pace:?} {end:?}");
        }
    }
}

/// Logits that tokens are chosen from, in their order.
#[derive(Default)]
struct Logits(Vec<Vec<f32>>);

impl Observe for Logits {
    fn see(&mut self, at: Boundary, value: &Tensor) -> Result<()> {
        if let Boundary::StepLogits(_) = at {
            self.0.push(value.to_vec1()?);
        }
        Ok(())
    }
}

/// Tokens of answers that grow together, each with the logits that it was chosen from.
fn observed(model: &LanguageModel, video: &VideoCache, prompts: &[&[u32]]) -> Vec<Vec<(u32, Vec<f32>)>> {
    let mut steps = Steps::new(model, video, &[], Pace::InStep);
    for (question, prompt) in prompts.iter().enumerate() {
        let generation = Generation { max_new_tokens: 12, temperature: 0.0, top_p: 1.0, seed: 0 };
        steps.begin(Asked { job: 0, question }, prompt, generation, &mut ()).unwrap();
    }
    let mut answers = vec![Vec::new(); prompts.len()];
    // Tokens of the prompts were chosen unobserved.
    for taken in steps.step(&mut ()).unwrap() {
        answers[taken.asked.question].push((taken.token.unwrap(), Vec::new()));
    }
    while !steps.is_empty() {
        let mut seen = Logits::default();
        let all = steps.step(&mut seen).unwrap();
        assert_eq!(all.len(), seen.0.len());
        for (taken, logits) in all.into_iter().zip(seen.0) {
            answers[taken.asked.question].push((taken.token.unwrap(), logits));
        }
    }
    answers
}

#[test]
fn in_half_precision_answers_together_differ_from_those_alone_where_two_tokens_are_as_good_alone() {
    let prompts = [&PROMPT[..7], &PROMPT, &PROMPT[..11], &PROMPT[..5]];
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 0.02), (DType::BF16, 0.2)] {
        let model = Model::new().language_model(dtype);
        let (image, audio) = (tokens(50, 1).to_dtype(dtype).unwrap(), tokens(13, 2).to_dtype(dtype).unwrap());
        let video = absorb(&model, &image, &audio, &[(Modality::Image, 0, 50), (Modality::Audio, 0, 13)]);
        for (prompt, together) in prompts.iter().zip(observed(&model, &video, &prompts)) {
            let alone = observed(&model, &video, &[prompt]).remove(0);
            for (step, ((want, here), (got, there))) in alone.iter().zip(&together).enumerate() {
                let error = here.iter().zip(there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < tolerance, "{dtype:?}, step {step}: the logits are off by {error}");
                if want != got {
                    let margin = here[*want as usize] - here[*got as usize];
                    assert!(dtype != DType::F32 && margin <= 2.0 * error, "{dtype:?}, step {step}: {margin} {error}");
                    // From here on they are answers to different texts.
                    break;
                }
            }
        }
    }
}

#[test]
fn answers_that_there_is_no_memory_for_at_once_go_on_when_others_have_ended() {
    let model = Model::new().language_model(DType::F32);
    let (image, audio) = (tokens(50, 1), tokens(13, 2));
    let video = absorb(&model, &image, &audio, &[(Modality::Image, 0, 50), (Modality::Audio, 0, 13)]);
    let lengths = [5, 3, 7, 2];
    for pace in [Pace::InStep, Pace::Ahead] {
        let mut steps = Steps::new(&model, &video, &[], pace);
        let mut got = vec![Vec::new(); lengths.len()];
        let mut rows = Vec::new();
        for (question, max_new_tokens) in lengths.into_iter().enumerate() {
            let generation = Generation { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0 };
            steps.begin(Asked { job: 0, question }, &PROMPT[..5 + question], generation, &mut ()).unwrap();
            if question == 1 {
                steps.note_full();
            }
        }
        while !steps.is_empty() {
            let all = steps.step(&mut ()).unwrap();
            rows.push(all.len());
            all.into_iter().for_each(|taken| got[taken.asked.question].push(taken.token.unwrap()));
        }
        // The first tokens are those of the prompts; from then on two a step.
        assert!(rows[0] == 4 && rows[1..].iter().all(|&n| n <= 2), "{rows:?}");
        for (question, most) in lengths.into_iter().enumerate() {
            let single = answers(&model, &video, Pace::InStep, &[], &[(&PROMPT[..5 + question], most)]).remove(0).0;
            assert_eq!(got[question], single, "{pace:?} {question}");
        }
    }
}
