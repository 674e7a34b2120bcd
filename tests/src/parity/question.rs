//! Question of the oracle, as a job would ask it.

use model::config_json::Family;
use stage_llm::text::chat::{ChatTemplate, PLACEHOLDER};
use stage_llm::text::registry::Tasks;

use super::golden::Facts;

/// Question of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The task's name.
    pub task: &'static str,
    /// The query of the client.
    pub query: String,
    /// The whole question as the model reads it.
    pub question: String,
    /// The prompt with the template around it, as golden.json has it.
    pub prompt: String,
}

impl Asked {
    /// The question of a golden directory, made with a checkpoint of this family and template.
    ///
    /// # Errors
    /// Reason why no job can ask this.
    pub fn new(facts: &Facts, family: Family, template: &ChatTemplate) -> Result<Self, String> {
        let (task, query) = match (&facts.query, &facts.prompt) {
            (Some(query), _) => ("retrieval", query.clone()),
            (None, Some(prompt)) => {
                ("qa", user_text(prompt, template).ok_or("the video is not the start of the user's turn")?)
            }
            (None, None) => return Err("golden.json has neither query nor prompt".to_owned()),
        };
        if query.contains(PLACEHOLDER) {
            return Err(format!("{PLACEHOLDER} in a query is plain text here, the oracle makes a placeholder of it"));
        }
        let (tasks, duration_s) = (Tasks::of(family), facts.duration.unwrap_or_default());
        let question = tasks.get(task).and_then(|t| t.question(&query, duration_s)).map_err(|e| e.to_string())?;
        let prompt = template.pieces(&question).map_err(|e| e.to_string())?.join(PLACEHOLDER);
        Ok(Asked { task, query, question, prompt })
    }
}

/// The user's turn without the video and the newline after it.
fn user_text(prompt: &str, template: &ChatTemplate) -> Option<String> {
    let [head, tail] = template.pieces("?").ok()?;
    let inside = prompt.strip_prefix(&head)?.strip_suffix(tail.strip_prefix("\n?")?)?;
    inside.strip_prefix(PLACEHOLDER)?.strip_prefix('\n').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(json: &str) -> Facts {
        let rest = r#""max_new_tokens": 1, "text_token_ids": [], "generated_token_ids": []"#;
        serde_json::from_str(&format!("{{{json}, {rest}}}")).unwrap()
    }

    fn asked(json: &str, family: Family) -> Result<Asked, String> {
        Asked::new(&facts(json), family, &ChatTemplate::built_in(family))
    }

    fn of_9b(json: &str) -> Result<Asked, String> {
        asked(json, Family::Gemma2)
    }

    #[test]
    fn vidi_7b_is_asked_as_its_own_reference_asks() {
        let of_7b = asked(r#""query": "a cat.", "duration": 40.3"#, Family::Mistral).unwrap();
        assert_eq!((of_7b.task, of_7b.query.as_str()), ("retrieval", "a cat."));
        assert!(
            of_7b.prompt.starts_with("[INST] <image>\nGiven the frames") && of_7b.prompt.ends_with("is: a cat.[/INST]")
        );
        assert!(of_7b.prompt.contains("Video length is: 40.30 and"));
        let open = asked(r#""query": null, "prompt": "[INST] <image>\nWhy?\n[/INST]""#, Family::Mistral).unwrap();
        assert_eq!((open.task, open.query.as_str()), ("qa", "Why?\n"));
    }

    #[test]
    fn a_query_is_asked_as_retrieval_and_a_whole_turn_as_an_open_question() {
        let asked = of_9b(r#""query": "a cat.""#).unwrap();
        assert_eq!((asked.task, asked.query.as_str()), ("retrieval", "a cat."));
        assert!(asked.prompt.contains("<image>\nDuring which") && asked.prompt.contains("see a cat?<end_of_turn>"));
        let turn = "<start_of_turn>user\\n<image>\\nWhy?\\nSay.<end_of_turn>\\n<start_of_turn>model\\n";
        let asked = of_9b(&format!(r#""query": null, "prompt": "{turn}""#)).unwrap();
        assert_eq!((asked.task, asked.query.as_str()), ("qa", "Why?\nSay."));
        assert_eq!(asked.prompt, turn.replace("\\n", "\n"));
    }

    #[test]
    fn what_no_job_can_ask_is_said_and_not_guessed() {
        for json in [
            r#""query": "an <image> inside""#,
            r#""query": """#,
            r#""query": null"#,
            r#""prompt": "<start_of_turn>user\nWhy? <image><end_of_turn>\n<start_of_turn>model\n""#,
        ] {
            assert!(of_9b(json).is_err(), "{json}");
        }
    }
}
