//! The vision stage, message in and message out.

#[path = "../../common/model/tests/tiny/mod.rs"]
mod tiny;

use config::MediaProducts;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{Family, ModelConfig};
use protocol::error::ErrorKind;
use protocol::message::FrameBatch;
use protocol::plan::{FRAME_BYTES, FRAME_SIDE, FrameGrid, ImagePlan, MediaPlan};
use protocol::stage::{Stage, Stop, Work};
use protocol::tensor::{Dtype, Tensor};
use stage_vision::{Pool, SiglipEncoder, VisionStage};
use tiny::Kept;

const CONFIG: &str = r#"{"hidden_size": 32, "mm_vision_config":
    {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}}"#;

/// The same of Vidi 7B: 3 x 3 cells a frame.
const CONVOLVED: &str = r#"{"model_type": "dattn_mistral", "mm_image_pool_size": 3, "mm_time_interval": 10000,
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "mm_vision_config":
    {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}}"#;

fn load(config: &ModelConfig, w: &Weights) -> Result<(SiglipEncoder, Pool), CheckpointError> {
    stage_vision::load(config, w, MediaProducts::Dense)
}

fn stage(batch: usize, weights: &(ModelConfig, Weights)) -> VisionStage {
    let (encoder, pool) = load(&weights.0, &weights.1).unwrap();
    VisionStage::new(encoder, pool, batch)
}

fn plan(frames: u64) -> MediaPlan {
    plan_on(FrameGrid::Budget, frames)
}

fn plan_on(grid: FrameGrid, frames: u64) -> MediaPlan {
    let image = (frames > 0).then(|| ImagePlan::on(grid, 30, frames));
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
fn tower_and_pool_ask_for_exactly_the_tensors_that_the_released_checkpoints_need_them_to() {
    let own = |part: &str, name: &str| part == "vision" || name.starts_with("model.mm_rand_img_pool");
    for (family, count) in [(Family::Gemma2, 419), (Family::Mistral, 420)] {
        let [needed, asked] = tiny::needed_and_asked(family, own, load);
        assert_eq!(asked.len(), count);
        assert_eq!(asked, needed, "{family:?}");
    }
}

#[test]
fn frames_give_the_same_rows_however_they_are_batched() {
    for (json, grid, cells, width) in [(CONFIG, FrameGrid::Budget, 196, 64), (CONVOLVED, FrameGrid::Fixed(3), 9, 16)] {
        let weights = tiny::weights(json, load);
        let (frames, plan) = (frames(5), plan_on(grid, 5));
        let mut whole = Kept::default();
        stage(4, &weights).process(batch(&frames, 0, &plan), &mut whole).unwrap();
        assert_eq!(whole.outputs.len(), 1);
        let whole = &whole.outputs[0];
        assert_eq!((whole.offset, &whole.shape), (0, &vec![5 * cells, width]));
        assert!(whole.rows[0] != whole.rows[cells], "two frames look alike");
        for (first, last, together) in [(0, 1, 1), (1, 3, 8), (3, 5, 1)] {
            let mut part = Kept::default();
            let bytes = &frames[first * FRAME_BYTES..last * FRAME_BYTES];
            stage(together, &weights).process(batch(bytes, first as u64, &plan), &mut part).unwrap();
            assert_eq!(part.outputs[0].offset, (first * cells) as u64);
            assert!(part.outputs[0].rows == whole.rows[first * cells..last * cells], "{grid}: {first}..{last}");
        }
    }
}

#[test]
fn a_plan_of_another_checkpoints_grid_is_refused_with_both_grids() {
    for (json, own, grid) in [
        (CONFIG, FrameGrid::Budget, FrameGrid::Fixed(14)),
        (CONVOLVED, FrameGrid::Fixed(3), FrameGrid::Budget),
        (CONVOLVED, FrameGrid::Fixed(3), FrameGrid::Fixed(5)),
    ] {
        let weights = tiny::weights(json, load);
        let mut kept = Kept::default();
        let stop = stage(1, &weights).process(batch(&frames(1), 0, &plan_on(grid, 2)), &mut kept);
        let Err(Stop::Failed(error)) = stop else { panic!("{stop:?}") };
        assert_eq!(error.kind, ErrorKind::Model);
        assert!([own, grid].iter().all(|grid| error.message.contains(&grid.to_string())), "{error}");
        assert!(kept.outputs.is_empty());
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

#[test]
fn messages_together_give_what_each_gives_alone_bit_for_bit() {
    for (json, grids) in [(CONFIG, [plan(7), plan(2000)]), (CONVOLVED, [7, 9].map(|n| plan_on(FrameGrid::Fixed(3), n)))]
    {
        let weights = tiny::weights(json, load);
        let frames = frames(7);
        let bytes = |first: usize, n: usize| &frames[first * FRAME_BYTES..(first + n) * FRAME_BYTES];
        let refused = plan_on(FrameGrid::Fixed(14), 7);
        // Of two videos whose grids differ, one message without a picture, one of another checkpoint, and a cancelled one.
        let inputs = || {
            [
                batch(bytes(0, 3), 0, &grids[0]),
                batch(&[], 0, &plan(0)),
                batch(bytes(3, 1), 5, &grids[1]),
                batch(bytes(2, 1), 2, &refused),
                batch(bytes(0, 2), 0, &grids[0]),
                batch(bytes(4, 3), 4, &grids[0]),
            ]
        };
        let new_port = |at: usize| Kept { cancel_after: (at == 4).then_some(0), ..Kept::default() };
        for together in [1, 2, 4, 16] {
            let mut stage = stage(together, &weights);
            let mut ports: Vec<Kept> = (0..inputs().len()).map(new_port).collect();
            let works = inputs().into_iter().zip(&mut ports).map(|(input, port)| Work { input, port });
            let outcomes = stage.process_together(works.collect());
            for (at, (input, (outcome, port))) in inputs().into_iter().zip(outcomes.iter().zip(&ports)).enumerate() {
                let mut alone = new_port(at);
                assert_eq!(&stage.process(input, &mut alone), outcome, "{together} frames a pass: {at}");
                assert_eq!(alone.outputs.len(), port.outputs.len(), "{together} frames a pass: {at}");
                for (one, other) in alone.outputs.iter().zip(&port.outputs) {
                    assert_eq!((one.offset, &one.shape, &one.plan), (other.offset, &other.shape, &other.plan));
                    assert!(
                        one.rows == other.rows,
                        "{together} frames a pass: cells of {at} depend on their neighbours"
                    );
                }
            }
            assert!(matches!(outcomes[3], Err(Stop::Failed(_))) && outcomes[4] == Err(Stop::Cancelled), "{outcomes:?}");
        }
    }
}

#[test]
fn a_job_that_is_cancelled_between_passes_leaves_the_others_frames_in_them() {
    let weights = tiny::weights(CONFIG, load);
    let frames = frames(6);
    let half = |at: usize| batch(&frames[at * 3 * FRAME_BYTES..(at + 1) * 3 * FRAME_BYTES], 0, &plan(3));
    let mut ports = [Kept { cancel_after: Some(1), ..Kept::default() }, Kept::default()];
    let works = ports.iter_mut().enumerate().map(|(at, port)| Work { input: half(at), port });
    let outcomes = stage(2, &weights).process_together(works.collect());
    assert_eq!(outcomes, [Err(Stop::Cancelled), Ok(())]);
    assert!(ports[0].outputs.is_empty());
    let mut alone = Kept::default();
    stage(2, &weights).process(half(1), &mut alone).unwrap();
    assert!(ports[1].outputs[0].rows == alone.outputs[0].rows);
}
