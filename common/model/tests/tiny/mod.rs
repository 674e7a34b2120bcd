//! For the tests of stages with a model: a checkpoint of made-up weights, just large enough to have every part, and a
//! port that keeps what it is given. One place for several crates, each of which has it as a module by path.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use compute::random::Normal;
use model::checkpoint::{Checkpoint, CheckpointError, Need, Weights};
use model::config_json::{Family, ModelConfig};
use protocol::message::{FeatureBatch, JobId, Output, TokenBatch};
use protocol::plan::MediaPlan;
use protocol::stage::{Port, Stop};
use protocol::wire::{Message, decode, encode};

/// Weights for all that `load` asks for of a model of this `config.json`, on disk and opened; a tensor's values follow
/// from its name.
pub fn weights<T>(
    json: &str,
    load: impl Fn(&ModelConfig, &Weights) -> Result<T, CheckpointError>,
) -> (ModelConfig, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let config: ModelConfig = serde_json::from_str(json).unwrap();
    let needs = Weights::survey(DType::F32, |w| load(&config, w)).unwrap();
    let values = |need: &Need| {
        let normal = Normal::new(1, &need.name, 0.0, 0.3);
        let values = (0..need.shape.iter().product::<usize>()).map(|i| normal.at(i as u64)).collect();
        Tensor::from_vec(values, need.shape.as_slice(), &Device::Cpu).unwrap()
    };
    let tensors: HashMap<String, Tensor> = needs.iter().map(|need| (need.name.clone(), values(need))).collect();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (config, Weights::new(Arc::new(checkpoint), DType::F32, Device::Cpu))
}

/// Name, shape and type of those tensors of a released checkpoint that `belongs` picks by part and name, and of what `load`
/// asks for.
pub fn needed_and_asked<T>(
    family: Family,
    belongs: impl Fn(&str, &str) -> bool,
    load: impl Fn(&ModelConfig, &Weights) -> Result<T, CheckpointError>,
) -> [BTreeMap<String, (Vec<usize>, DType)>; 2] {
    let list = match family {
        Family::Gemma2 => "vidi15_9b_tensors.json",
        Family::Mistral => "vidi7b_tensors.json",
    };
    let path = format!("{}/../tests/oracle/{list}", env!("CARGO_MANIFEST_DIR"));
    let list: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let needed = list["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["needed"] == true && belongs(t["part"].as_str().unwrap(), t["name"].as_str().unwrap()));
    let needed = needed.map(|t| {
        let shape = t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let dtype = if t["keep_float32"] == true { DType::F32 } else { DType::F16 };
        (t["name"].as_str().unwrap().to_owned(), (shape, dtype))
    });
    let config = ModelConfig::of(family);
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

/// Keeps features and tokens that a stage emits, each checked and read as the bus would.
#[derive(Default)]
pub struct Kept {
    pub outputs: Vec<Emitted>,
    /// How often the stage has asked whether it is cancelled.
    pub asked: std::cell::Cell<usize>,
    /// Questions that are answered with no.
    pub cancel_after: Option<usize>,
}

impl Port for Kept {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let body = match &output {
            Output::Features(m) => m.check().map(|()| encode(m)),
            Output::Tokens(m) => m.check().map(|()| encode(m)),
            other => panic!("no stage with a model emits {}", other.message_id()),
        };
        let body = body.expect("what a stage emits passes its own check");
        let (offset, plan, tensor) = match &output {
            Output::Features(_) => {
                let m = decode::<FeatureBatch<'_>>(&body).expect("what a stage emits can be read");
                (m.offset, m.plan, m.tensor)
            }
            _ => {
                let m = decode::<TokenBatch<'_>>(&body).expect("what a stage emits can be read");
                (m.offset, m.plan, m.tensor)
            }
        };
        let rows = if tensor.rows() > 0 {
            compute::transfer::upload(&tensor, &Device::Cpu).unwrap().to_vec2().unwrap()
        } else {
            Vec::new()
        };
        self.outputs.push(Emitted { offset, plan, shape: tensor.shape(), rows });
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.cancel_after.is_some_and(|n| self.asked.get() > n)
    }
}
