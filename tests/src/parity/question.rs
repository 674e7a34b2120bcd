//! Question of the oracle, as a job would ask it.

use stage_llm::text::prompt::pieces;
use stage_llm::text::registry::Tasks;

use super::golden::Facts;

/// Placeholder of the video in the template.
const PLACEHOLDER: &str = "<image>";

/// Question of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The task's name.
    pub task: &'static str,
    /// The query of the client.
    pub query: String,
    /// The whole question as the model reads it.
    pub question: String,
}

impl Asked {
    /// The question of a golden directory.
    ///
    /// # Errors
    /// Reason why no job can ask this.
    pub fn new(facts: &Facts) -> Result<Self, String> {
        let (task, query) = match (&facts.query, &facts.prompt) {
            (Some(query), _) => ("retrieval", query.clone()),
            (None, Some(prompt)) => ("qa", user_text(prompt).ok_or("the video is not the start of the user's turn")?),
            (None, None) => return Err("golden.json has neither query nor prompt".to_owned()),
        };
        if query.contains(PLACEHOLDER) {
            return Err(format!("{PLACEHOLDER} in a query is plain text here, the oracle makes a placeholder of it"));
        }
        let tasks = Tasks::builtin();
        let question = tasks.get(task).and_then(|t| t.question(&query)).map_err(|e| e.to_string())?;
        Ok(Asked { task, query, question })
    }

    /// The prompt with the template around it, as golden.json has it.
    pub fn prompt(&self) -> String {
        pieces(&self.question).join(PLACEHOLDER)
    }
}

/// The user's turn without the video and the newline after it.
fn user_text(prompt: &str) -> Option<String> {
    let [head, tail] = pieces("");
    let inside = prompt.strip_prefix(&head)?.strip_suffix(&tail)?;
    inside.strip_prefix(PLACEHOLDER)?.strip_prefix('\n').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(json: &str) -> Facts {
        let rest = r#""max_new_tokens": 1, "text_token_ids": [], "generated_token_ids": []"#;
        serde_json::from_str(&format!("{{{json}, {rest}}}")).unwrap()
    }

    #[test]
    fn a_query_is_asked_as_retrieval_and_a_whole_turn_as_an_open_question() {
        let asked = Asked::new(&facts(r#""query": "a cat.""#)).unwrap();
        assert_eq!((asked.task, asked.query.as_str()), ("retrieval", "a cat."));
        assert!(asked.prompt().contains("<image>\nDuring which") && asked.prompt().contains("see a cat?<end_of_turn>"));
        let turn = "<start_of_turn>user\\n<image>\\nWhy?\\nSay.<end_of_turn>\\n<start_of_turn>model\\n";
        let asked = Asked::new(&facts(&format!(r#""query": null, "prompt": "{turn}""#))).unwrap();
        assert_eq!((asked.task, asked.query.as_str()), ("qa", "Why?\nSay."));
        assert_eq!(asked.prompt(), turn.replace("\\n", "\n"));
    }

    #[test]
    fn what_no_job_can_ask_is_said_and_not_guessed() {
        for json in [
            r#""query": "an <image> inside""#,
            r#""query": """#,
            r#""query": null"#,
            r#""prompt": "<start_of_turn>user\nWhy? <image><end_of_turn>\n<start_of_turn>model\n""#,
        ] {
            assert!(Asked::new(&facts(json)).is_err(), "{json}");
        }
    }
}
