//! Budgets of all stage processes, divided from or held against what they may take of each device together.

use config::{COMPUTING, Config};
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use runtime::process::{Exit, Fatal};

use crate::model::device_plan::DevicePlan;
use crate::model::plan::{MemoryPlan, Replicas};

/// Divides what the processes on each device may take of it together among them, where the configuration does not divide it
/// itself.
///
/// # Errors
/// [`Exit::DoesNotFit`] with the plan where the stages, or the budgets that were given, need more; [`Exit::Model`] for a
/// checkpoint that cannot be read.
pub fn divide(config: &mut Config, replicas: &Replicas) -> Result<(), Fatal> {
    if config.compute.card_bytes.is_none() && config.placement.card_bytes.is_empty() {
        return Ok(());
    }
    let wrong = |e: model::checkpoint::CheckpointError| Fatal(Exit::Model, e.to_string());
    let model = ModelConfig::configured(&config.model).map_err(wrong)?;
    let plan = MemoryPlan::new(config, &model, replicas).map_err(wrong)?;
    let given = !config.budgets.is_empty() || !config.placement.budgets.is_empty();
    for on in &plan.devices {
        let Some((cap, key)) = &on.cap else { continue };
        let (device, cap_bytes) = (on.device, Bytes(*cap));
        if !given && on.budgets().is_none() {
            let text = format!(
                "the stages do not fit {device}: {key} is {cap_bytes}\n{plan}\nset llm.weights = \"q8\" or \"q4\", start fewer \
                 replicas, place some on another device, or raise {key}"
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        }
        let together = budgeted_bytes(config, replicas, on);
        if given && together > *cap {
            let text = format!(
                "the budgets of all processes do not fit {device}: they add up to {}, {key} is {cap_bytes}\n{plan}\nlower budgets, \
                 start fewer replicas, place some on another device, or raise {key}",
                Bytes(together)
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        }
    }
    if !given {
        deal(config, replicas, &plan);
    }
    if plan.llm_processes() > 1 {
        // In phases a language model takes a whole GPU; one of several would take it, or the encoders, from the others.
        config.compute.card_bytes = None;
        config.placement.card_bytes.clear();
    }
    Ok(())
}

/// Gives every process its budget: by stage where all compute on one device, else one by one.
fn deal(config: &mut Config, replicas: &Replicas, plan: &MemoryPlan) {
    if let [only] = plan.devices.as_slice() {
        config.budgets.extend(only.budgets().unwrap_or_default());
        return;
    }
    for stage in COMPUTING {
        let budget = |replica| {
            let device = config.device(stage, replica);
            let on = plan.devices.iter().find(|on| on.device == device)?;
            on.budgets()?.into_iter().find(|(of, _)| *of == stage).map(|(_, bytes)| bytes)
        };
        // 0: a device without a cap.
        let list: Vec<u64> = (0..count(replicas, stage)).map(|replica| budget(replica).unwrap_or(0)).collect();
        if !list.is_empty() {
            config.placement.budgets.insert(stage, list);
        }
    }
}

/// Bytes that the processes on a device may hold under the budgets that were given; one without counts with what it takes.
fn budgeted_bytes(config: &Config, replicas: &Replicas, on: &DevicePlan) -> u64 {
    let of = |stage, takes: u64| {
        let there = (0..count(replicas, stage)).filter(|&replica| config.device(stage, replica) == on.device);
        there.map(|replica| config.replica_budget(stage, replica).unwrap_or(takes)).sum::<u64>()
    };
    on.stages().map(|(stage, footprint, _)| of(stage, footprint.bytes())).sum()
}

/// Number of processes of a stage; one of a stage that is not named.
fn count(replicas: &Replicas, stage: StageName) -> usize {
    replicas.iter().find(|(of, _)| *of == stage).map_or(1, |(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::Device;

    use super::*;

    /// A demo checkpoint's configuration with a GPU of so many bytes; the directory lives as long as the test.
    fn capped(card_bytes: u64) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let mut config = Config::default();
        config.model.dir = dir.path().to_owned();
        config.compute.card_bytes = Some(card_bytes);
        (dir, config)
    }

    fn needs(config: &Config, replicas: &Replicas) -> u64 {
        MemoryPlan::new(config, &ModelConfig::default(), replicas).unwrap().bytes()
    }

    #[test]
    fn replicas_that_do_not_fit_the_gpu_together_are_refused_with_the_figures() {
        let (_dir, mut config) = capped(u64::MAX);
        let two = [(StageName::Vision, 2)];
        config.compute.card_bytes = Some(needs(&config, &two) - 1);
        assert!(divide(&mut config.clone(), &[]).is_ok());
        let Fatal(exit, said) = divide(&mut config.clone(), &two).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("vision") && said.contains("fewer replicas"), "{said}");
        config.compute.card_bytes = Some(needs(&config, &two));
        assert!(divide(&mut config, &two).is_ok());
    }

    #[test]
    fn budgets_of_all_replicas_together_are_held_against_the_gpu() {
        let (_dir, mut config) = capped(100);
        config.budgets =
            [(StageName::Vision, 30), (StageName::Audio, 10), (StageName::Fuse, 10), (StageName::Llm, 50)].into();
        assert!(divide(&mut config.clone(), &[]).is_ok());
        let Fatal(exit, said) = divide(&mut config, &[(StageName::Vision, 2)]).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("budgets of all processes"), "{said}");
    }

    #[test]
    fn of_several_language_models_none_is_told_of_a_whole_gpu() {
        let (_dir, mut config) = capped(1 << 40);
        let mut shared = config.clone();
        divide(&mut shared, &[(StageName::Llm, 2)]).unwrap();
        divide(&mut config, &[]).unwrap();
        assert_eq!((config.compute.card_bytes, shared.compute.card_bytes), (Some(1 << 40), None));
        let llm = |budgets: &BTreeMap<StageName, u64>| budgets[&StageName::Llm];
        assert!(llm(&shared.budgets) < llm(&config.budgets) / 2 + 1);
    }

    const APART: [&str; 5] = [
        "compute.device=cuda",
        "placement.vision=cuda:0,cuda:1",
        "placement.audio=cuda:1",
        "placement.fuse=cuda:1",
        "model.weights=random:tiny",
    ];
    const REPLICAS: [(StageName, usize); 1] = [(StageName::Vision, 2)];

    fn apart(more: &[String]) -> Config {
        let set: Vec<String> = APART.iter().map(|&s| s.to_owned()).chain(more.iter().cloned()).collect();
        Config::load(None, [], &set).unwrap()
    }

    #[test]
    fn each_gpu_is_divided_among_those_on_it_and_a_process_reads_its_own_part() {
        let mut config =
            apart(&["placement.card_bytes={ \"cuda:0\" = 8000000000, \"cuda:1\" = 6000000000 }".to_owned()]);
        let plan = MemoryPlan::new(&config, &ModelConfig::configured(&config.model).unwrap(), &REPLICAS).unwrap();
        divide(&mut config, &REPLICAS).unwrap();
        let budget = |stage, replica| config.of_replica(stage, replica).budget(stage).unwrap();
        let vision = plan.devices[0].encoders[0].1.bytes();
        assert_eq!([0, 1].map(|replica| budget(StageName::Vision, replica)), [vision; 2]);
        assert_eq!(budget(StageName::Llm, 0), 8_000_000_000 - vision);
        let llm = config.of_replica(StageName::Llm, 0);
        assert_eq!(llm.compute.card_bytes, Some(8_000_000_000), "in phases stage-vision leaves");
        // Where no encoder is beside it, the language model has the GPU, and nobody has to leave.
        let set = ["placement.vision=cuda:1,cuda:1".to_owned(), "compute.card_bytes=8000000000".to_owned()];
        let mut config = apart(&set);
        divide(&mut config, &REPLICAS).unwrap();
        let llm = config.of_replica(StageName::Llm, 0);
        assert_eq!((llm.compute.card_bytes, llm.budget(StageName::Llm)), (None, Some(8_000_000_000)));
        let second = config.of_replica(StageName::Vision, 1);
        assert_eq!((second.budget(StageName::Vision), second.compute.device.as_str()), (Some(vision), "cuda:1"));
    }

    #[test]
    fn a_gpu_that_does_not_hold_its_stages_is_named_and_one_without_a_cap_is_not_divided() {
        let one_short = apart(&["placement.card_bytes={ \"cuda:1\" = 1000 }".to_owned()]);
        let Fatal(exit, said) = divide(&mut one_short.clone(), &REPLICAS).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("do not fit cuda:1"), "{said}");
        assert!(said.contains("placement.card_bytes.cuda:1") && said.contains("another device"), "{said}");
        let mut roomy = apart(&["placement.card_bytes={ \"cuda:1\" = 60000000000 }".to_owned()]);
        divide(&mut roomy, &REPLICAS).unwrap();
        let budget = |replica| roomy.of_replica(StageName::Vision, replica).budget(StageName::Vision);
        assert!(budget(0).is_none() && budget(1).is_some());
        assert_eq!(roomy.of_replica(StageName::Llm, 0).budget(StageName::Llm), None);
    }

    #[test]
    fn budgets_are_held_against_the_gpu_that_they_are_on() {
        let given = |cap: u64| {
            let mut config = apart(&[format!("placement.card_bytes={{ \"cuda:1\" = {cap} }}")]);
            config.placement.budgets.insert(StageName::Vision, vec![1_000_000, 30]);
            config.budgets = [(StageName::Audio, 10), (StageName::Fuse, 2)].into();
            divide(&mut config, &REPLICAS)
        };
        assert!(given(42).is_ok(), "the first replica is on the other GPU");
        let Fatal(exit, said) = given(41).unwrap_err();
        assert!(exit == Exit::DoesNotFit && said.contains("budgets of all processes do not fit cuda:1"), "{said}");
    }

    #[test]
    fn of_several_language_models_none_goes_in_phases_on_any_gpu() {
        let set = ["placement.llm=cuda:0,cuda:1".to_owned(), "compute.card_bytes=40000000000".to_owned()];
        let mut config = apart(&set);
        divide(&mut config, &[(StageName::Vision, 2), (StageName::Llm, 2)]).unwrap();
        let [first, second] = [0, 1].map(|replica| config.of_replica(StageName::Llm, replica));
        assert_eq!((first.compute.card_bytes, second.compute.card_bytes), (None, None));
        let budgets = [&first, &second].map(|config| config.budget(StageName::Llm).unwrap());
        assert!(budgets[0] > budgets[1], "stage-audio and stage-fuse are beside the second one: {budgets:?}");
        assert_eq!(config.device(StageName::Llm, 1), Device::Cuda(1));
    }
}
