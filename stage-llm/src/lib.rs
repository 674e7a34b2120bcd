//! Language model stage: a question and a video's tokens in, an answer out; it knows no bus.
//!
//! In reading order: [`language`] (the model, and the keys and values that it fills), [`text`] (questions, and text to
//! tokens and back), [`job`] (one job from its request to its answer), [`open`](mod@open) (the stage as a process
//! serves it). Each imports from those before it alone.

pub mod job;
pub mod language;
pub mod open;
pub mod text;

pub use job::answer::{LlmStage, Settings};
pub use language::LanguageModel;
pub use open::open;
pub use text::prompt::Prompter;
