//! Work of a job: the questions that its task asks the model.

use protocol::error::{ErrorKind, JobError};
use protocol::message::JobRequest;

use crate::text::prompt::Prompter;
use crate::text::reading::Parser;
use crate::text::registry::Tasks;
use crate::text::task::{Generation, QueryRule, RangeSource, Task};

/// Most tokens of all answers of a job with several questions, and of all titles of a composite task: its result is one message,
/// and has to pass a broker that takes 1 MB.
const MOST_ANSWER_TOKENS: usize = 16_384;

/// Question, as the model reads it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Query of the client, or the whole question where the task wrote it.
    pub query: String,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Settings of the answer.
    pub generation: Generation,
    /// Parser of the answer.
    pub parser: Parser,
}

impl Question {
    /// Most tokens of prompt and answer.
    pub fn text_tokens(&self) -> usize {
        self.prompt.len() + self.generation.max_new_tokens
    }
}

/// Questions of a job.
pub struct Work<'a> {
    /// Task of the job.
    pub task: &'a Task,
    /// Questions that are known before the video is; none where only its pictures say what to ask.
    pub questions: Vec<Question>,
    /// Parser of their answers.
    pub parser: Parser,
    /// Whether the client asked several, or the task does, so that events and result tell them apart.
    pub several: bool,
    /// Whether a question says how long the video is.
    pub says_duration: bool,
    /// Most tokens of the question for a title, and of the title; 0 for a task without titles.
    title_tokens: usize,
}

impl<'a> Work<'a> {
    /// Questions of a request about `duration_s` seconds of video; 0 before the file was probed, after which the work is to be
    /// made anew where it [says them](Self::says_duration).
    ///
    /// # Errors
    /// `bad_request` for an unknown task or parser, for queries that are missing, empty, too long, or not taken.
    pub fn new(tasks: &'a Tasks, request: &JobRequest, prompter: &Prompter, duration_s: f64) -> Result<Self, JobError> {
        let task = tasks.get(&request.task)?;
        let own = own_queries(request);
        if task.query == QueryRule::None
            && !request.queries.is_empty()
            && !matches!(task.ranges, Some(RangeSource::Queries { .. }))
        {
            let text = format!("request refused: task {:?} takes no queries, {} came", task.name, own.len());
            return Err(JobError::new(ErrorKind::BadRequest, text).hint("leave queries out"));
        }
        let mut work = Work {
            task,
            questions: Vec::new(),
            parser: task.parser(request)?,
            several: false,
            says_duration: false,
            title_tokens: 0,
        };
        match &task.ranges {
            None => {
                let one = [request.query.clone()];
                let queries = if request.queries.is_empty() { one.as_slice() } else { &request.queries };
                work.questions = asked(task, queries, request, prompter, duration_s)?;
                work.says_duration = task.says_duration();
                work.several = !request.queries.is_empty();
            }
            Some(source) => {
                work.several = true;
                if task.has_titles() {
                    work.title_tokens = title(task, [0.0; 2], request, prompter)?.text_tokens();
                }
                if let RangeSource::Queries { task: name, queries, .. } = source {
                    let asked_task = tasks.get(name)?;
                    work.parser = asked_task.parser(request)?;
                    let queries = if own.is_empty() { queries } else { &own };
                    work.questions = asked(asked_task, queries, request, prompter, duration_s)?;
                    work.says_duration = asked_task.says_duration();
                }
            }
        }
        Ok(work)
    }

    /// Most tokens of any question with its answer: what has to fit beside the video.
    pub fn text_tokens(&self) -> usize {
        self.questions.iter().map(Question::text_tokens).max().unwrap_or(0).max(self.title_tokens)
    }

    /// Tokens of the prompts that are known.
    pub fn prompt_tokens(&self) -> u64 {
        self.questions.iter().map(|question| question.prompt.len() as u64).sum()
    }
}

/// Queries that a client brings for a composite task.
fn own_queries(request: &JobRequest) -> Vec<String> {
    match request.queries.as_slice() {
        [] if request.query.trim().is_empty() => Vec::new(),
        [] => vec![request.query.clone()],
        queries => queries.to_vec(),
    }
}

/// Question of a task for each query; of many, each answer has its share of [`MOST_ANSWER_TOKENS`].
fn asked(
    task: &Task,
    queries: &[String],
    request: &JobRequest,
    prompter: &Prompter,
    duration_s: f64,
) -> Result<Vec<Question>, JobError> {
    let (generation, parser) = (shared(task.generation(request), queries.len()), task.parser(request)?);
    let one = |query: &String| {
        let prompt = prompter.encode(&task.question(query, duration_s)?)?;
        Ok(Question { query: query.clone(), prompt, generation, parser })
    };
    queries.iter().map(one).collect()
}

/// Settings of each of `count` answers: none has more than its share of [`MOST_ANSWER_TOKENS`].
fn shared(generation: Generation, count: usize) -> Generation {
    let most = MOST_ANSWER_TOKENS / count.max(1);
    Generation { max_new_tokens: generation.max_new_tokens.min(most), ..generation }
}

/// Question for the title of a range; its start and end are seconds of what was watched.
///
/// # Errors
/// `bad_request` for a prompt that is too long.
pub fn title(
    task: &Task,
    [start_s, end_s]: [f64; 2],
    request: &JobRequest,
    prompter: &Prompter,
) -> Result<Question, JobError> {
    let query = task.title_question(start_s, end_s);
    let prompt = prompter.encode(&query)?;
    let most = task.ranges.as_ref().map_or(1, RangeSource::most);
    Ok(Question { query, prompt, generation: shared(task.generation(request), most), parser: Parser::Text })
}
