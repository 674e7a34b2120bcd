//! The vision stage, message in and message out.

#[path = "../../common/model/tests/tiny/mod.rs"]
mod tiny;

use config::MediaProducts;
use model::checkpoint::CheckpointError;
use model::config_json::ModelConfig;
use protocol::message::FrameBatch;
use protocol::plan::{FRAME_BYTES, FRAME_SIDE, ImagePlan, MediaPlan};
use protocol::stage::{Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use stage_vision::{SiglipEncoder, VisionStage};
use tiny::Kept;

const CONFIG: &str = r#"{"hidden_size": 32, "mm_vision_config":
    {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}}"#;

fn load(config: &ModelConfig, w: &model::checkpoint::Weights) -> Result<SiglipEncoder, CheckpointError> {
    SiglipEncoder::new(config, w, MediaProducts::Dense)
}

fn stage(batch: usize, weights: &(ModelConfig, model::checkpoint::Weights)) -> VisionStage {
    VisionStage::new(load(&weights.0, &weights.1).unwrap(), batch)
}

fn plan(frames: u64) -> MediaPlan {
    let image = (frames > 0).then(|| ImagePlan::new(30, frames));
    MediaPlan { content_id: "sampled:0".to_owned(), duration_s: 5.0, image, audio: None, notes: Vec::new() }
}

/// Frames that differ from each other and within themselves.
fn frames(n: usize) -> Vec<u8> {
    (0..n * FRAME_BYTES).map(|i| ((i / FRAME_BYTES * 37) ^ (i % 251) ^ (i / 1152 % 256)) as u8).collect()
}

fn batch<'a>(frames: &'a [u8], offset: u64, plan: &MediaPlan) -> FrameBatch<'a> {
    let shape = [frames.len() / FRAME_BYTES, FRAME_SIDE, FRAME_SIDE, 3];
    let tensor = Tensor::new(Dtype::U8, &shape, frames).unwrap();
    FrameBatch { v: 1, job: tiny::job(), plan: plan.clone(), offset, tensor }
}

#[test]
fn the_tower_asks_for_exactly_the_tensors_that_the_released_checkpoint_needs_it_to() {
    let [needed, asked] = tiny::needed_and_asked("vision", load);
    assert_eq!(asked.len(), 419);
    assert_eq!(asked, needed);
}

#[test]
fn frames_give_the_same_rows_however_they_are_batched() {
    let weights = tiny::weights(CONFIG, load);
    let (frames, plan) = (frames(5), plan(5));
    let mut whole = Kept::default();
    stage(4, &weights).process(batch(&frames, 0, &plan), &mut whole).unwrap();
    assert_eq!(whole.outputs.len(), 1);
    assert_eq!((whole.outputs[0].offset, &whole.outputs[0].shape), (0, &vec![5 * 196, 64]));
    assert!(whole.outputs[0].rows[0] != whole.outputs[0].rows[196], "two frames look alike");
    for (first, last, together) in [(0, 1, 1), (1, 3, 8), (3, 5, 1)] {
        let mut part = Kept::default();
        let bytes = &frames[first * FRAME_BYTES..last * FRAME_BYTES];
        stage(together, &weights).process(batch(bytes, first as u64, &plan), &mut part).unwrap();
        assert_eq!(part.outputs[0].offset, first as u64 * 196);
        assert!(part.outputs[0].rows == whole.outputs[0].rows[first * 196..last * 196], "{first}..{last}");
    }
}

#[test]
fn a_long_video_gives_fewer_and_coarser_cells() {
    let weights = tiny::weights(CONFIG, load);
    let mut kept = Kept::default();
    stage(1, &weights).process(batch(&frames(1), 1999, &plan(2000)), &mut kept).unwrap();
    assert_eq!((kept.outputs[0].offset, &kept.outputs[0].shape), (1999 * 25, &vec![25, 64]));
}

#[test]
fn an_absent_picture_stays_absent() {
    let weights = tiny::weights(CONFIG, load);
    let mut kept = Kept::default();
    stage(1, &weights).process(batch(&[], 0, &plan(0)), &mut kept).unwrap();
    assert_eq!((kept.outputs[0].offset, &kept.outputs[0].shape), (0, &vec![0, 64]));
    assert_eq!(kept.outputs[0].plan.image, None);
}

#[test]
fn a_cancelled_job_stops_between_passes_of_the_tower() {
    let weights = tiny::weights(CONFIG, load);
    let mut kept = Kept { cancel_after: Some(1), ..Kept::default() };
    let stop = stage(1, &weights).process(batch(&frames(3), 0, &plan(3)), &mut kept);
    assert_eq!(stop, Err(Stop::Cancelled));
    assert!(kept.outputs.is_empty());
    assert_eq!(kept.asked.get(), 2, "it went on after the job was cancelled");
}
