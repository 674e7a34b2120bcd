//! Truth about a video: what is seen and heard in it, and when; questions with their answers.

use std::path::Path;

use protocol::event::{JobResult, TimeRange};
use serde::{Deserialize, Serialize};

use super::scene::{Colour, Interval, Scene, Shape, Sound};
use super::verdict::Verdict;

/// Truth about one video, as its JSON file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// Seed of its scene.
    pub seed: u64,
    /// Length, seconds.
    pub seconds: u32,
    /// Width and height of the picture.
    pub size: [usize; 2],
    /// What is seen.
    pub objects: Vec<Object>,
    /// What is heard.
    pub sounds: Vec<Heard>,
    /// Questions with their answers.
    pub questions: Vec<Question>,
}

/// Thing that is seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
    /// When, seconds.
    pub seen: Vec<Interval>,
}

/// Sound that is heard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    /// Which.
    pub sound: Sound,
    /// When, seconds.
    pub heard: Vec<Interval>,
}

/// Question as `vidi ask` takes it, with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// `--task`.
    pub task: String,
    /// The question's words.
    pub query: String,
    /// True answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// True answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Time ranges, seconds; none for what is not there.
    Ranges(Vec<Interval>),
    /// Words.
    Text(String),
}

impl Truth {
    /// Truth about a scene.
    pub fn of(scene: &Scene, seed: u64, questions: Vec<Question>) -> Self {
        let objects =
            scene.things.iter().map(|t| Object { colour: t.kind.colour, shape: t.kind.shape, seen: t.seen.clone() });
        let sounds = scene.sounds.iter().map(|(sound, heard)| Heard { sound: *sound, heard: heard.clone() });
        Truth {
            seed,
            seconds: scene.seconds,
            size: scene.size,
            objects: objects.collect(),
            sounds: sounds.collect(),
            questions,
        }
    }

    /// Truth that a file holds.
    ///
    /// # Errors
    /// The file, and why it cannot be read.
    pub fn read(file: &Path) -> Result<Self, String> {
        let wrong = |e: &dyn std::fmt::Display| {
            format!("no truth in {}: {e}; `vidi demo-video OUT.mp4` writes OUT.json", file.display())
        };
        let text = std::fs::read(file).map_err(|e| wrong(&e))?;
        serde_json::from_slice(&text).map_err(|e| wrong(&e))
    }

    /// The answer to a question.
    ///
    /// # Errors
    /// The questions of this task that it has an answer to.
    pub fn answer(&self, task: &str, query: &str) -> Result<&Answer, String> {
        let of_task = || self.questions.iter().filter(|q| q.task == task);
        of_task().find(|q| q.query == query).map(|q| &q.answer).ok_or_else(|| {
            let known: Vec<String> = of_task().map(|q| format!("{:?}", q.query)).collect();
            format!(
                "the truth has no answer to {query:?} (task {task}); ask one of its {}: {}",
                known.len(),
                known.join(", ")
            )
        })
    }
}

impl Answer {
    /// What is left of it where only a part of the video is looked at.
    #[must_use]
    pub fn within(&self, [start, end]: Interval) -> Self {
        match self {
            Answer::Text(_) => self.clone(),
            Answer::Ranges(ranges) => {
                let cut = ranges.iter().map(|[from, to]| [from.max(start), to.min(end)]);
                Answer::Ranges(cut.filter(|[from, to]| from < to).collect())
            }
        }
    }

    /// How right a result is.
    pub fn judge(&self, result: &JobResult) -> Verdict {
        self.judge_of(&result.text, &result.ranges)
    }

    /// How right one answer of several is.
    pub fn judge_of(&self, text: &str, ranges: &[TimeRange]) -> Verdict {
        match self {
            Answer::Text(words) => Verdict::of_words(text, words),
            Answer::Ranges(truth) => {
                let said: Vec<Interval> = ranges.iter().map(|r| [r.start_s, r.end_s]).collect();
                Verdict::of_ranges(&said, truth)
            }
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Text(text) => f.write_str(text),
            Answer::Ranges(ranges) if ranges.is_empty() => f.write_str("none"),
            Answer::Ranges(ranges) => {
                let shown: Vec<String> = ranges.iter().map(|[from, to]| format!("{from:.1}-{to:.1} s")).collect();
                f.write_str(&shown.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_json_that_people_can_read_and_comes_back_as_it_was() {
        let ranges = Answer::Ranges(vec![[1.0, 2.5]]);
        let question = Question { task: "retrieval".to_owned(), query: "a beep".to_owned(), answer: ranges };
        let json = serde_json::to_value(&question).unwrap();
        assert_eq!(json, serde_json::json!({ "task": "retrieval", "query": "a beep", "ranges": [[1.0, 2.5]] }));
        assert_eq!(serde_json::from_value::<Question>(json).unwrap(), question);
    }

    #[test]
    fn a_part_of_a_video_has_its_part_of_the_truth() {
        let whole = Answer::Ranges(vec![[1.0, 4.0], [6.0, 8.0], [9.0, 12.0]]);
        assert_eq!(whole.within([3.0, 8.5]), Answer::Ranges(vec![[3.0, 4.0], [6.0, 8.0]]));
    }
}
