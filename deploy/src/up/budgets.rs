//! Budgets of all stage processes, divided from or held against what they may take of the GPU together.

use config::Config;
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use runtime::process::{Exit, Fatal};

use crate::model::plan::{MemoryPlan, Replicas};

/// Divides `compute.card_bytes` among all processes, where the configuration does not divide it itself.
///
/// # Errors
/// [`Exit::DoesNotFit`] with the plan where the stages, or the budgets that were given, need more; [`Exit::Model`] for a
/// checkpoint that cannot be read.
pub fn divide(config: &mut Config, replicas: &Replicas) -> Result<(), Fatal> {
    let Some(gpu_bytes) = config.compute.card_bytes else { return Ok(()) };
    let wrong = |e: model::checkpoint::CheckpointError| Fatal(Exit::Model, e.to_string());
    let model = ModelConfig::configured(&config.model).map_err(wrong)?;
    let plan = MemoryPlan::new(config, &model, replicas).map_err(wrong)?;
    if config.budgets.is_empty() {
        let Some(budgets) = plan.budgets() else {
            let text = format!(
                "the stages do not fit: compute.card_bytes is {}\n{plan}\nset llm.weights = \"q8\" or \"q4\", start fewer \
                 replicas, or raise compute.card_bytes",
                Bytes(gpu_bytes)
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        };
        config.budgets.extend(budgets);
    } else {
        let together = plan.budgeted_bytes(&config.budgets);
        if together > gpu_bytes {
            let text = format!(
                "the budgets of all processes do not fit: they add up to {}, compute.card_bytes is {}\n{plan}\nlower budgets, start fewer \
                 replicas, or raise compute.card_bytes",
                Bytes(together),
                Bytes(gpu_bytes)
            );
            return Err(Fatal(Exit::DoesNotFit, text));
        }
    }
    if plan.llm_processes > 1 {
        // In phases a language model takes the whole GPU; one of several would take it from the others.
        config.compute.card_bytes = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use protocol::error::StageName;

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
}
