//! The fuse stage, message in and message out.

#[path = "../../common/model/tests/tiny/mod.rs"]
mod tiny;

use std::collections::BTreeSet;

use candle_core::DType;
use compute::random::Draws;
use compute::transfer::to_wire;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{Family, ModelConfig};
use protocol::error::ErrorKind;
use protocol::message::{FeatureBatch, Modality};
use protocol::plan::{AudioPlan, FrameGrid, ImagePlan, MediaPlan};
use protocol::stage::{Stage, Stop};
use protocol::tensor::Tensor;
use stage_fuse::{FuseStage, Fuser};
use tiny::{Emitted, Kept};

const CONFIG: &str = r#"{"hidden_size": 32, "mm_vision_config": {"hidden_size": 16, "num_attention_heads": 2},
    "mm_audio_config": {"d_model": 24, "encoder_attention_heads": 2}}"#;

/// The same of Vidi 7B: 3 x 3 cells a frame.
const CONVOLVED: &str = r#"{"model_type": "dattn_mistral", "mm_image_pool_size": 3, "mm_time_interval": 10000,
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "mm_vision_config": {"hidden_size": 16, "num_attention_heads": 2},
    "mm_audio_config": {"d_model": 24, "encoder_attention_heads": 2}}"#;

const IMAGE: usize = 64;
const AUDIO: usize = 24;
const GRID: FrameGrid = FrameGrid::Fixed(3);

fn load(config: &ModelConfig, w: &Weights) -> Result<Fuser, CheckpointError> {
    Fuser::new(config, w)
}

fn stage() -> FuseStage {
    stage_of(CONFIG)
}

fn stage_of(json: &str) -> FuseStage {
    let (config, weights) = tiny::weights(json, load);
    FuseStage::new(load(&config, &weights).unwrap())
}

fn plan(frames: u64, samples: u64) -> MediaPlan {
    plan_on(FrameGrid::Budget, frames, samples)
}

fn plan_on(grid: FrameGrid, frames: u64, samples: u64) -> MediaPlan {
    let image = (frames > 0).then(|| ImagePlan::on(grid, 30, frames));
    MediaPlan {
        content_id: "sampled:0".to_owned(),
        duration_s: 5.0,
        image,
        audio: AudioPlan::new(samples),
        notes: Vec::new(),
    }
}

fn rows(n: usize, width: usize) -> Tensor<'static> {
    let x = Draws::default().normal((n, width)).unwrap();
    to_wire(&x).unwrap()
}

fn batch<'a>(plan: &MediaPlan, modality: Modality, offset: u64, tensor: Tensor<'a>) -> FeatureBatch<'a> {
    FeatureBatch { v: 1, job: tiny::job(), plan: plan.clone(), modality, offset, tensor }
}

fn run(stage: &mut FuseStage, input: FeatureBatch<'_>) -> Vec<Emitted> {
    let mut kept = Kept::default();
    stage.process(input, &mut kept).unwrap();
    kept.outputs
}

/// Tokens of the whole in one batch, and in batches cut at `cuts`, in which no cut may change a bit.
fn cut_anywhere(
    mut stage: FuseStage,
    modality: Modality,
    plan: &MediaPlan,
    whole: &Tensor<'_>,
    cuts: &[usize],
    per_token: usize,
) {
    let all = run(&mut stage, batch(plan, modality, 0, whole.clone())).remove(0);
    assert_eq!((all.offset, all.shape[0]), (0, whole.rows() / per_token));
    let ends = cuts.iter().copied().chain([whole.rows()]);
    // Backwards: no batch may lean on the one before it.
    let spans: Vec<(usize, usize)> = [0].into_iter().chain(cuts.iter().copied()).zip(ends).collect();
    for &(start, end) in spans.iter().rev() {
        let part = run(&mut stage, batch(plan, modality, start as u64, whole.narrow(start, end - start))).remove(0);
        assert_eq!(part.offset, (start / per_token) as u64);
        let first = start / per_token;
        assert!(part.rows == all.rows[first..first + part.rows.len()], "{modality} {start}..{end}");
    }
}

#[test]
fn the_adapters_ask_for_exactly_the_tensors_of_the_released_checkpoints_positions_in_f32() {
    // The image pool's convolution is stage-vision's.
    let own = |part: &str, name: &str| part == "adapter" && !name.starts_with("model.mm_rand_img_pool");
    for family in Family::ALL {
        let [needed, asked] = tiny::needed_and_asked(family, own, load);
        assert_eq!(asked.len(), 24);
        assert_eq!(asked, needed, "{family:?}");
    }
}

#[test]
fn another_projector_has_other_tensors() {
    let names = |projector: &str| -> BTreeSet<String> {
        let config = ModelConfig { mm_projector_type: projector.to_owned(), ..ModelConfig::default() };
        let needs = Weights::survey(DType::F32, |w| load(&config, w)).unwrap();
        needs
            .into_iter()
            .map(|need| need.name)
            .filter(|name| name.contains("img_projector") && name.ends_with("weight"))
            .collect()
    };
    let expected =
        |parts: &[&str]| parts.iter().map(|p| format!("model.mm_rand_img_projector.model{p}.weight")).collect();
    assert_eq!(names("linear"), expected(&[""]));
    assert_eq!(names("mlp1x_gelu"), expected(&[".0"]));
    assert_eq!(names("mlp3x_gelu"), expected(&[".0", ".2", ".4"]));
}

#[test]
fn picture_rows_may_be_cut_anywhere() {
    let plan = plan(4, 0);
    let whole = rows(4 * 196, IMAGE);
    cut_anywhere(stage(), Modality::Image, &plan, &whole, &[1, 3, 196, 197, 250, 392, 600, 783], 1);
    let (plan, whole) = (plan_on(GRID, 40, 0), rows(40 * 9, 16));
    cut_anywhere(stage_of(CONVOLVED), Modality::Image, &plan, &whole, &[1, 3, 9, 10, 100, 355], 1);
}

#[test]
fn sound_rows_may_be_cut_at_any_multiple_of_five() {
    // 1003 rows: 200 tokens and three rows that fill none.
    let plan = plan(0, 160 * 2007);
    let whole = rows(1003, AUDIO);
    for json in [CONFIG, CONVOLVED] {
        cut_anywhere(stage_of(json), Modality::Audio, &plan, &whole, &[5, 15, 200, 300, 995], 5);
    }
}

#[test]
fn a_rest_of_the_sound_that_fills_no_token_gives_nothing() {
    let outputs = run(&mut stage(), batch(&plan(0, 160 * 2007), Modality::Audio, 1000, rows(3, AUDIO)));
    assert!(outputs.is_empty());
}

#[test]
fn a_token_knows_its_row_its_column_and_its_frame() {
    let plan = plan(3, 0);
    let cell = rows(1, IMAGE);
    let same: Vec<u8> = cell.data().repeat(3 * 196);
    let whole = Tensor::new(protocol::tensor::Dtype::F32, &[3 * 196, IMAGE], same).unwrap();
    let all = run(&mut stage(), batch(&plan, Modality::Image, 0, whole)).remove(0).rows;
    let distinct: BTreeSet<Vec<u32>> = all.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect();
    assert_eq!(distinct.len(), all.len(), "equal cells at different places gave equal tokens");
}

#[test]
fn features_of_another_width_are_refused_with_both_widths() {
    for (modality, width) in [(Modality::Image, IMAGE), (Modality::Audio, AUDIO)] {
        let mut kept = Kept::default();
        let stop = stage().process(batch(&plan(2, 16_000), modality, 0, rows(10, 17)), &mut kept);
        let Err(Stop::Failed(error)) = stop else { panic!("{stop:?}") };
        assert_eq!(error.kind, ErrorKind::Model);
        assert!(error.message.contains("17") && error.message.contains(&width.to_string()), "{error}");
        assert!(kept.outputs.is_empty());
    }
}

#[test]
fn a_plan_of_another_checkpoints_grid_is_refused_with_both_grids() {
    for (json, grid, width) in
        [(CONFIG, GRID, IMAGE), (CONVOLVED, FrameGrid::Budget, 16), (CONVOLVED, FrameGrid::Fixed(5), 16)]
    {
        let mut kept = Kept::default();
        let stop = stage_of(json).process(batch(&plan_on(grid, 2, 0), Modality::Image, 0, rows(10, width)), &mut kept);
        let Err(Stop::Failed(error)) = stop else { panic!("{stop:?}") };
        assert_eq!(error.kind, ErrorKind::Model);
        let own = if json == CONFIG { FrameGrid::Budget } else { GRID };
        assert!([own, grid].iter().all(|g| error.message.contains(&g.to_string())), "{error}");
        assert!(kept.outputs.is_empty());
    }
}

#[test]
fn an_absent_half_stays_absent() {
    for (modality, width) in [(Modality::Image, IMAGE), (Modality::Audio, AUDIO)] {
        let outputs = run(&mut stage(), batch(&plan(0, 0), modality, 0, rows(0, width)));
        assert_eq!((outputs[0].offset, &outputs[0].shape), (0, &vec![0, 32]));
        assert_eq!((&outputs[0].plan.image, &outputs[0].plan.audio), (&None, &None));
    }
}

#[test]
fn a_cancelled_job_is_not_fused() {
    let mut kept = Kept { cancel_after: Some(0), ..Kept::default() };
    let stop = stage().process(batch(&plan(2, 0), Modality::Image, 0, rows(10, IMAGE)), &mut kept);
    assert_eq!(stop, Err(Stop::Cancelled));
}
