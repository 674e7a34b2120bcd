//! The audio stage, message in and message out.

#[path = "../../common/model/tests/tiny/mod.rs"]
mod tiny;

use candle_core::{Device, Tensor};
use config::MediaProducts;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{Family, ModelConfig};
use protocol::message::PcmWindow;
use protocol::plan::{AudioPlan, MediaPlan};
use protocol::stage::{Stage, Stop, Work};
use stage_audio::{AudioStage, LogMel, WhisperEncoder};
use tiny::Kept;

const CONFIG: &str = r#"{"hidden_size": 32, "mm_audio_config":
    {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}}"#;

fn load(config: &ModelConfig, w: &Weights) -> Result<WhisperEncoder, CheckpointError> {
    WhisperEncoder::new(config, w, MediaProducts::Dense)
}

fn stage() -> AudioStage {
    stage_of(1)
}

/// A stage that takes so many windows together.
fn stage_of(batch: usize) -> AudioStage {
    let (config, weights) = tiny::weights(CONFIG, load);
    AudioStage::new(LogMel::new(config.audio.num_mel_bins), load(&config, &weights).unwrap(), batch)
}

fn window(pcm: &[i16], index: u64, samples: u64) -> PcmWindow<'static> {
    let plan = MediaPlan {
        content_id: "sampled:0".to_owned(),
        duration_s: 5.0,
        image: None,
        audio: AudioPlan::new(samples),
        notes: Vec::new(),
    };
    PcmWindow { v: 1, job: tiny::job(), plan, index, tensor: protocol::tensor::Tensor::from_i16(pcm) }
}

fn sound(samples: usize) -> Vec<i16> {
    (0..samples).map(|i| ((i * i / 97 + i * 13) % 20_011) as i16 - 10_000).collect()
}

#[test]
fn the_encoder_asks_for_exactly_the_tensors_that_the_released_checkpoint_needs_it_to() {
    let [needed, asked] = tiny::needed_and_asked(Family::Gemma2, |part, _| part == "audio", load);
    assert_eq!(asked.len(), 487);
    assert_eq!(asked, needed);
}

#[test]
fn windows_encode_alike_alone_and_together() {
    let (config, weights) = tiny::weights(CONFIG, load);
    let (encoder, mel) = (load(&config, &weights).unwrap(), LogMel::new(128));
    let windows = [sound(480_000), sound(31_000)].map(|pcm| mel.tensor(&pcm, &Device::Cpu).unwrap());
    let mut seen = Vec::new();
    let observe = &mut |name: &str, x: &Tensor| seen.push((name.to_owned(), x.dims().to_vec()));
    let together = encoder.forward(&Tensor::cat(&windows, 0).unwrap(), observe).unwrap();
    for (i, window) in windows.iter().enumerate() {
        let alone = encoder.forward(window, &mut |_, _| ()).unwrap().get(0).unwrap();
        assert!(alone.to_vec2::<f32>().unwrap() == together.get(i).unwrap().to_vec2::<f32>().unwrap(), "{i}");
    }
    let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["audio_embed", "audio_layer0", "audio_layer1"]);
    assert!(seen.iter().all(|(_, dims)| *dims == [2, 1500, 16]), "{seen:?}");
}

#[test]
fn a_window_gives_the_rows_that_its_length_pays_for() {
    let mut stage = stage();
    // 30 s, then 1001 frames of 10 ms: 4001 / 2 = 2000 rows, 500 of them in the second window.
    let (all, rest) = (480_000 + 160_160, sound(160_160));
    let mut kept = Kept::default();
    stage.process(window(&rest, 1, all), &mut kept).unwrap();
    assert_eq!((kept.outputs[0].offset, &kept.outputs[0].shape), (1500, &vec![500, 16]));
    assert_eq!(
        (kept.outputs[0].plan.audio.as_ref(), &kept.outputs[0].plan.image),
        (AudioPlan::new(all).as_ref(), &None)
    );
    let mut alone = Kept::default();
    stage.process(window(&rest, 0, 160_160), &mut alone).unwrap();
    assert_eq!((alone.outputs[0].offset, &alone.outputs[0].shape), (0, &vec![500, 16]));
    assert!(alone.outputs[0].rows == kept.outputs[0].rows, "states depend on where the window stands");
}

#[test]
fn a_last_window_that_adds_no_rows_gives_nothing() {
    let mut stage = stage();
    for tail in [100, 159, 200] {
        let mut kept = Kept::default();
        stage.process(window(&sound(tail), 1, 480_000 + tail as u64), &mut kept).unwrap();
        assert!(kept.outputs.is_empty(), "{tail} samples");
    }
}

#[test]
fn an_absent_sound_stays_absent() {
    let mut kept = Kept::default();
    stage().process(window(&[], 0, 0), &mut kept).unwrap();
    assert_eq!((kept.outputs[0].offset, &kept.outputs[0].shape), (0, &vec![0, 16]));
    assert_eq!(kept.outputs[0].plan.audio, None);
    assert!(kept.outputs[0].rows.is_empty());
}

#[test]
fn a_cancelled_job_is_not_encoded() {
    let mut kept = Kept { cancel_after: Some(0), ..Kept::default() };
    assert_eq!(stage().process(window(&sound(9000), 0, 9000), &mut kept), Err(Stop::Cancelled));
    assert!(kept.outputs.is_empty());
}

#[test]
fn messages_together_give_what_each_gives_alone_bit_for_bit() {
    // Of two videos, one of them without sound; a last window that adds nothing, and a cancelled one.
    let all = 480_000 + 160_160;
    let windows = || {
        [
            (sound(480_000), 0, all),
            (sound(160_160), 1, all),
            (Vec::new(), 0, 0),
            (sound(100), 1, 480_100),
            (sound(31_000), 0, 31_000),
            (sound(9_000), 0, 9_000),
        ]
    };
    let inputs = || windows().map(|(pcm, index, samples)| window(&pcm, index, samples));
    let cancelled = 4;
    let new_port = |at: usize| Kept { cancel_after: (at == cancelled).then_some(0), ..Kept::default() };
    for batch in [1, 2, 3, 8] {
        let mut stage = stage_of(batch);
        assert_eq!(stage.together(), batch as u64);
        let mut ports: Vec<Kept> = (0..windows().len()).map(new_port).collect();
        let works = inputs().into_iter().zip(&mut ports).map(|(input, port)| Work { input, port });
        let outcomes = stage.process_together(works.collect());
        assert_eq!(outcomes.len(), ports.len());
        for (at, (input, (outcome, together))) in inputs().into_iter().zip(outcomes.iter().zip(&ports)).enumerate() {
            let mut alone = new_port(at);
            assert_eq!(&stage_of(1).process(input, &mut alone), outcome, "batches of {batch}: {at}");
            assert_eq!(alone.outputs.len(), together.outputs.len(), "batches of {batch}: {at}");
            for (one, other) in alone.outputs.iter().zip(&together.outputs) {
                assert_eq!((one.offset, &one.shape, &one.plan), (other.offset, &other.shape, &other.plan));
                assert!(one.rows == other.rows, "batches of {batch}: the states of {at} depend on their neighbours");
            }
        }
        assert_eq!(outcomes[cancelled], Err(Stop::Cancelled));
    }
}
