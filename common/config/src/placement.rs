//! Section `placement`: the device that each process of a stage computes on, and what it may hold there.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use protocol::error::StageName;

/// Stages that compute on a device.
pub const COMPUTING: [StageName; 4] = [StageName::Vision, StageName::Audio, StageName::Fuse, StageName::Llm];

/// Device that a stage computes on. GPUs come first in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The N-th GPU of those that CUDA shows to the process.
    Cuda(usize),
    /// The host's processors.
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse().ok()).flatten();
        let found = match text.trim() {
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(ordinal).map(Device::Cuda),
        };
        found.ok_or_else(|| format!("no device {text:?}; there are cpu, cuda and cuda:N, the N-th GPU"))
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Section `placement`. A stage that it does not name computes on `compute.device`, as one process unless `--replicas` says
/// otherwise. The devices of a stage are a list, or a text with commas between them: a process on each, dealt in turn where
/// `--replicas` asks for more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementConfig {
    /// Devices of stage-vision, e.g. `["cuda:0", "cuda:1"]`.
    #[serde(deserialize_with = "devices")]
    pub vision: Vec<Device>,
    /// Devices of stage-audio.
    #[serde(deserialize_with = "devices")]
    pub audio: Vec<Device>,
    /// Devices of stage-fuse.
    #[serde(deserialize_with = "devices")]
    pub fuse: Vec<Device>,
    /// Devices of stage-llm.
    #[serde(deserialize_with = "devices")]
    pub llm: Vec<Device>,
    /// What all processes may take of a device together, contexts included; of a GPU that is not named, and of
    /// `compute.device`, that is `compute.card_bytes`.
    pub card_bytes: BTreeMap<Device, u64>,
    /// Bytes that each process of a stage may hold, in the order of its devices, 0 for no cap: in place of `budgets`, where the
    /// processes of a stage are not alike.
    pub budgets: BTreeMap<StageName, Vec<u64>>,
}

impl PlacementConfig {
    /// Devices of a stage; none if it is not placed.
    pub fn of(&self, stage: StageName) -> &[Device] {
        match stage {
            StageName::Decode => &[],
            StageName::Vision => &self.vision,
            StageName::Audio => &self.audio,
            StageName::Fuse => &self.fuse,
            StageName::Llm => &self.llm,
        }
    }

    /// Refuses lists of budgets that are empty.
    ///
    /// # Errors
    /// The key, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.budgets.iter().find(|(_, list)| list.is_empty()) {
            Some((stage, _)) => Err(format!(
                "placement.budgets.{stage} is an empty list: give a number for each process, or leave the key out"
            )),
            None => Ok(()),
        }
    }
}

/// Reads a list of devices, or a text with commas between them; an empty text is none.
fn devices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Device>, D::Error> {
    struct Listed;
    impl<'de> de::Visitor<'de> for Listed {
        type Value = Vec<Device>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("devices: cpu, cuda or cuda:N, one, several with commas between them, or a list")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let named = text.split(',').filter(|_| !text.trim().is_empty());
            named.map(|device| device.parse().map_err(E::custom)).collect()
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(device) = list.next_element()? {
                all.push(device);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Listed)
}
