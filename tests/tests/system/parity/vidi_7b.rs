//! Vidi 7B's cases, through the same code and with the same tolerances.

use config::{KvPrecision, MediaProducts, WeightFormat};
use tests::parity::compare;
use tests::parity::report::Verdict;

use super::{holds, options};

#[test]
fn the_usual_run_is_the_oracles_at_every_boundary() {
    let report = holds("7b_basic", "7b", 3);
    for name in ["pooled", "image_tokens", "audio_pooled", "image_hidden.2", "text_hidden.3", "step_logits"] {
        assert!(report.row(name).is_some_and(|row| row.distance.is_some()), "{name}\n{report}");
    }
}

#[test]
fn a_video_without_sound_is_answered_as_by_the_oracle() {
    holds("7b_no_audio", "7b", 3);
}

#[test]
fn two_windows_of_sound_are_heard_as_by_the_oracle() {
    holds("7b_long_audio", "7b", 3);
}

#[test]
fn a_long_video_keeps_the_cells_of_its_frames() {
    let report = holds("7b_many_frames", "7b", 1);
    assert!(report.row("grid (count)").is_some(), "{report}");
}

#[test]
fn a_long_prompt_is_read_without_a_window_as_by_the_oracle() {
    holds("7b_long_prompt", "7b", 2);
}

#[test]
fn a_prompt_without_a_video_is_read_and_answered_as_by_the_oracle() {
    let report = compare(&options("7b_text_alone", "7b", 0)).unwrap();
    let (jobs, boundaries): (Vec<_>, Vec<_>) = report.rows.iter().partition(|row| row.name == "pipeline");
    assert!(boundaries.iter().all(|row| row.verdict == Verdict::Ok), "{report}");
    assert!(matches!(&jobs[..], [row] if matches!(row.verdict, Verdict::NotCompared(_))), "{report}");
}

#[test]
fn an_open_question_is_answered_as_by_the_oracle() {
    holds("7b_open_question", "7b", 2);
}

#[test]
fn an_answer_of_time_ranges_ends_and_reads_as_the_oracles() {
    let report = holds("7b_time_ranges", "7b", 2);
    assert!(report.row("time_ranges").is_some() && report.row("stopped_by_eos").is_some());
}

#[test]
fn a_pool_of_26_tied_embeddings_and_a_window_on_every_layer_give_what_the_oracle_gives() {
    holds("7b_pool_of_26", "7b-tied", 1);
}

#[test]
fn heads_of_the_real_widths_and_16_bit_weights_give_what_the_oracle_gives() {
    holds("7b_realdims", "7b-realdims", 2);
}

/// Every format is told apart from single precision and stays within its limits.
#[test]
fn quantized_weights_keys_and_values_and_products_in_8_bits_give_the_oracles_tokens_at_a_bounded_error() {
    for (weights, kv, products) in [
        (WeightFormat::Q8, KvPrecision::Q8, MediaProducts::Dense),
        (WeightFormat::Dense, KvPrecision::Q4, MediaProducts::Dense),
        (WeightFormat::Q8, KvPrecision::Q4, MediaProducts::Fp8),
    ] {
        let mut options = options("7b_realdims", "7b-realdims", 0);
        (options.config.llm.weights, options.config.llm.kv) = (weights, kv);
        options.config.compute.media_products = products;
        let report = compare(&options).unwrap();
        assert!(report.failures().is_empty(), "{weights:?}, {kv:?}, {products:?}\n{report}");
        let off = report.row("step_logits").unwrap().distance.unwrap().relative_rms;
        assert!(off > 1e-3, "{weights:?}, {kv:?}, {products:?}: off by {off} only\n{report}");
    }
}
