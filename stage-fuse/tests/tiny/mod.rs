//! A checkpoint of random weights, just large enough to have every part, and a port that keeps what it is given.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use common::checkpoint::{Checkpoint, CheckpointError, Need, Weights};
use common::message::{JobId, Output, TokenBatch};
use common::model::ModelConfig;
use common::plan::MediaPlan;
use common::stage::{Port, Stop};
use common::wire::{Message, encode};

const CONFIG: &str = r#"{"hidden_size": 32, "mm_vision_config": {"hidden_size": 16, "num_attention_heads": 2},
    "mm_audio_config": {"d_model": 24, "encoder_attention_heads": 2}}"#;

/// Random weights for all that `load` asks for, on disk and opened.
pub fn weights<T>(load: impl Fn(&ModelConfig, &Weights) -> Result<T, CheckpointError>) -> (ModelConfig, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let config: ModelConfig = serde_json::from_str(CONFIG).unwrap();
    let needs = Weights::survey(DType::F32, |w| load(&config, w)).unwrap();
    let random = |need: &Need| Tensor::randn(0f32, 0.3, need.shape.as_slice(), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> = needs.iter().map(|need| (need.name.clone(), random(need))).collect();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (config, Weights::new(Arc::new(checkpoint), DType::F32, Device::Cpu))
}

/// Name, shape and type of what the released checkpoint has for `part`, and of what `load` asks for.
pub fn needed_and_asked<T>(
    part: &str,
    load: impl Fn(&ModelConfig, &Weights) -> Result<T, CheckpointError>,
) -> [BTreeMap<String, (Vec<usize>, DType)>; 2] {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracle/vidi15_9b_tensors.json");
    let list: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let needed = list["tensors"].as_array().unwrap().iter().filter(|t| t["part"] == part && t["needed"] == true);
    let needed = needed.map(|t| {
        let shape = t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let dtype = if t["keep_float32"] == true { DType::F32 } else { DType::F16 };
        (t["name"].as_str().unwrap().to_owned(), (shape, dtype))
    });
    let config = ModelConfig::default();
    let asked = Weights::survey(DType::F16, |w| load(&config, w)).unwrap();
    let count = asked.len();
    let asked: BTreeMap<_, _> = asked.into_iter().map(|need| (need.name, (need.shape, need.dtype))).collect();
    assert_eq!(asked.len(), count, "a tensor was asked for twice");
    [needed.collect(), asked]
}

/// A job's name.
pub fn job() -> JobId {
    JobId::new("job").unwrap()
}

/// One output as it arrived.
pub struct Emitted {
    pub offset: u64,
    pub plan: MediaPlan,
    pub shape: Vec<usize>,
    pub rows: Vec<Vec<f32>>,
}

/// Keeps what a stage emits.
#[derive(Default)]
pub struct Kept {
    pub outputs: Vec<Emitted>,
    pub cancelled: bool,
}

impl Port for Kept {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let Output::Tokens(m) = output else { panic!("not tokens: {output:?}") };
        m.check().expect("what a stage emits passes its own check");
        common::wire::decode::<TokenBatch>(&encode(&m)).expect("what a stage emits can be read");
        let tensor = m.tensor.to_candle(&Device::Cpu).unwrap();
        let rows = if m.tensor.rows() > 0 { tensor.to_vec2().unwrap() } else { Vec::new() };
        self.outputs.push(Emitted { offset: m.offset, plan: m.plan, shape: m.tensor.shape(), rows });
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }
}
