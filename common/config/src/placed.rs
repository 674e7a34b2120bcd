//! Where a process of a stage computes and what it may hold there, by the whole configuration.

use protocol::error::StageName;

use crate::Config;
use crate::placement::{COMPUTING, Device, PlacementConfig};

impl Config {
    /// Device of the `replica`-th process of a stage; stage-decode works on the host's processors.
    pub fn device(&self, stage: StageName, replica: usize) -> Device {
        match (stage, self.placement.of(stage)) {
            (StageName::Decode, _) => Device::Cpu,
            (_, []) => self.compute.placed_on(),
            (_, devices) => devices[replica % devices.len()],
        }
    }

    /// What all processes may take of a device together, and the key that says so.
    pub fn cap(&self, device: Device) -> Option<(u64, String)> {
        if let Some(&bytes) = self.placement.card_bytes.get(&device) {
            return Some((bytes, format!("placement.card_bytes.{device}")));
        }
        let meant = device != Device::Cpu || self.compute.placed_on() == device;
        self.compute.card_bytes.filter(|_| meant).map(|bytes| (bytes, "compute.card_bytes".to_owned()))
    }

    /// Bytes that the `replica`-th process of a stage may hold; none without a cap.
    pub fn replica_budget(&self, stage: StageName, replica: usize) -> Option<u64> {
        match self.placement.budgets.get(&stage).and_then(|list| list.get(replica)) {
            Some(&bytes) => Some(bytes).filter(|&bytes| bytes > 0),
            None => self.budget(stage),
        }
    }

    /// Configuration of the `replica`-th process of a stage: `compute.device` and `budgets` are its own, and nothing is left to
    /// be placed. A language model that shares its device with no encoder has nobody to wait for: what it may hold is all that
    /// it can get, and no job of it runs in phases.
    pub fn of_replica(&self, stage: StageName, replica: usize) -> Config {
        let mut own = self.clone();
        own.placement = PlacementConfig::default();
        match self.replica_budget(stage, replica) {
            Some(bytes) => own.budgets.insert(stage, bytes),
            None => own.budgets.remove(&stage),
        };
        if stage == StageName::Decode || self.placement == PlacementConfig::default() {
            return own;
        }
        let device = self.device(stage, replica);
        own.compute.device = device.to_string();
        own.compute.card_bytes = self.cap(device).map(|(bytes, _)| bytes);
        let shared = COMPUTING.into_iter().any(|other| other != StageName::Llm && self.is_on(other, device));
        if stage == StageName::Llm && !shared {
            let alone = own.compute.card_bytes.take();
            if let Some(bytes) = alone {
                own.budgets.entry(stage).or_insert(bytes);
            }
        }
        own
    }

    /// Configuration of a process of a stage that is started alone.
    ///
    /// # Errors
    /// The devices, where the stage has several: nobody says which of them is meant.
    pub fn of_only_process(&self, stage: StageName) -> Result<Config, String> {
        let mut devices = self.placement.of(stage).to_vec();
        devices.dedup();
        match devices.as_slice() {
            [] | [_] => Ok(self.of_replica(stage, 0)),
            several => {
                let named: Vec<String> = several.iter().map(Device::to_string).collect();
                Err(format!(
                    "placement.{stage} has {}: say which of them this process computes on, e.g. --set placement.{stage}={}",
                    named.join(", "),
                    named[0]
                ))
            }
        }
    }

    /// Whether a process of a stage computes on a device.
    fn is_on(&self, stage: StageName, device: Device) -> bool {
        match self.placement.of(stage) {
            [] => self.compute.placed_on() == device,
            devices => devices.contains(&device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(all: &[&str]) -> Result<Config, String> {
        Config::load(None, [], &all.iter().map(|&s| s.to_owned()).collect::<Vec<_>>())
    }

    const CAPPED: [&str; 2] = ["compute.device=cuda", "compute.card_bytes=100"];

    #[test]
    fn devices_are_dealt_in_turn_and_a_stage_that_is_not_placed_is_where_it_was() {
        let config = set(&["compute.device=cuda", "placement.vision=cuda:0,cuda:1", "placement.audio=cpu"]).unwrap();
        let of = |stage, n: usize| (0..n).map(|i| config.device(stage, i).to_string()).collect::<Vec<_>>();
        assert_eq!(of(StageName::Vision, 3), ["cuda:0", "cuda:1", "cuda:0"]);
        assert_eq!(
            (of(StageName::Audio, 1), of(StageName::Llm, 2)),
            (vec!["cpu".to_owned()], vec!["cuda:0".into(); 2])
        );
        let listed =
            set(&["compute.device=cuda", "placement.vision=[\"cuda\", \"cuda:1\"]", "placement.audio=[\"cpu\"]"]);
        assert_eq!(listed.unwrap(), config);
        assert_eq!(set(&["placement.vision="]).unwrap(), Config::default());
    }

    #[test]
    fn what_is_unknown_is_refused_with_what_is_known() {
        for (wrong, words) in [
            ("placement.vision=gpu:1", &["gpu:1", "cpu, cuda and cuda:N"][..]),
            ("placement.vision=cuda:0,", &["no device \"\"", "cuda:N"]),
            ("placement.vision=cuda:-1", &["cuda:-1"]),
            ("placement.vision=1", &["devices", "cuda:N"]),
            ("placement.decoder=cpu", &["decoder", "vision", "llm"]),
            ("placement.decode=cpu", &["decode", "vision", "llm"]),
            ("placement.card_bytes={ \"gpu\" = 1 }", &["gpu", "cuda:N"]),
            ("placement.budgets={ vison = [1] }", &["vison"]),
            ("placement.budgets={ vision = [] }", &["placement.budgets.vision", "empty"]),
        ] {
            let said = set(&[wrong]).unwrap_err();
            assert!(words.iter().all(|word| said.contains(word)), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_process_reads_its_own_device_cap_and_budget_and_nothing_else_changes() {
        let own = [
            "placement.vision=cuda:0,cuda:1",
            "placement.card_bytes={ \"cuda:1\" = 70 }",
            "placement.budgets={ vision = [30, 0] }",
            "budgets.vision=5",
            "budgets.audio=6",
        ];
        let config = set(&[&CAPPED[..], &own].concat()).unwrap();
        let [first, second] = [0, 1].map(|i| config.of_replica(StageName::Vision, i));
        assert_eq!((first.compute.device.as_str(), first.compute.card_bytes), ("cuda:0", Some(100)));
        assert_eq!((second.compute.device.as_str(), second.compute.card_bytes), ("cuda:1", Some(70)));
        assert_eq!([&first, &second].map(|c| c.budget(StageName::Vision)), [Some(30), None]);
        assert_eq!(config.of_replica(StageName::Audio, 0).budget(StageName::Audio), Some(6));
        assert_eq!((first.llm, first.model), (config.llm.clone(), config.model.clone()));
        let plain = set(&CAPPED).unwrap();
        assert_eq!(plain.of_replica(StageName::Llm, 0), plain);
        // A process on the CPU is not under a GPU's cap.
        assert_eq!((config.cap(Device::Cpu), plain.cap(Device::Cuda(3)).map(|c| c.0)), (None, Some(100)));
    }

    #[test]
    fn a_language_model_waits_for_those_on_its_own_gpu_alone() {
        let card = |extra: &[&str]| {
            let config = set(&[&CAPPED[..], extra].concat()).unwrap().of_replica(StageName::Llm, 0);
            (config.compute.card_bytes, config.budget(StageName::Llm))
        };
        let away = ["placement.vision=cuda:1", "placement.audio=cuda:1", "placement.fuse=cuda:1"];
        assert_eq!(card(&[]), (Some(100), None));
        assert_eq!(card(&away[..2]), (Some(100), None), "stage-fuse is still there");
        assert_eq!(card(&away), (None, Some(100)));
        assert_eq!(card(&[&away[..], &["budgets.llm=60"]].concat()), (None, Some(60)));
        assert_eq!(card(&["placement.llm=cuda:1"]), (None, Some(100)));
        let both = ["placement.vision=cuda:0,cuda:1", "placement.audio=cuda:1", "placement.fuse=cuda:1"];
        assert_eq!(card(&both), (Some(100), None), "a replica of stage-vision is there");
    }

    #[test]
    fn a_process_that_is_started_alone_has_one_device_or_is_refused() {
        let config = set(&["placement.vision=cuda:0,cuda:1", "placement.audio=cuda:1,cuda:1"]).unwrap();
        let said = config.of_only_process(StageName::Vision).unwrap_err();
        assert!(said.contains("cuda:0, cuda:1") && said.contains("--set placement.vision=cuda:0"), "{said}");
        assert_eq!(config.of_only_process(StageName::Audio).unwrap().compute.device, "cuda:1");
    }
}
