//! `vidi tasks`: what can be asked.

use config::{Config, ModelSource};
use model::config_json::{Family, ModelConfig};
use runtime::answer;
use runtime::process::{Exit, Fatal};
use stage_llm::text::registry::Tasks;
use stage_llm::text::task::{QueryRule, Task};

use crate::up::use_model;

/// Prints every task that a stage-llm with this configuration knows, as its model has them: a line each, or one JSON list.
/// Without a model, those of Vidi 1.5 9B.
///
/// # Errors
/// For a model or a file of tasks that is wrong, and when standard output cannot be written.
pub fn list(config: &mut Config, json: bool) -> Result<(), Fatal> {
    let family = match config.model == ModelSource::default() {
        true => Family::Gemma2,
        false => {
            use_model(config)?;
            ModelConfig::configured(&config.model).map_err(|e| Fatal(Exit::Model, e.to_string()))?.family
        }
    };
    let tasks = Tasks::with_file(config.llm.tasks_file.as_deref(), family);
    let tasks = tasks.map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    if json {
        let all: Vec<&Task> = tasks.iter().collect();
        return Ok(answer!("{}", serde_json::json!(all))?);
    }
    answer!("{:<12} {:<13} {:<10} {:<9} answers", "task", "supported", "parser", "query")?;
    for task in tasks.iter() {
        let query = match task.query {
            QueryRule::Required => "required",
            QueryRule::None => "none",
        };
        let (supported, parser) = (task.supported.as_str(), task.parser.as_str());
        answer!("{:<12} {supported:<13} {parser:<10} {query:<9} {}", task.name, task.about)?;
    }
    Ok(())
}
