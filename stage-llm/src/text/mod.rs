//! Text side of the language model: questions to tokens, logits to tokens, and tokens to text.
//!
//! In reading order: [`reading`] (an answer's text to times), [`task`] (kinds of questions), [`registry`]
//! (those that a worker knows), [`chat`] (the text around a question), [`prompt`] (text to tokens), [`sample`] (logits to a token), [`detokenize`] (tokens to text).

pub mod chat;
pub mod detokenize;
pub mod prompt;
pub mod reading;
pub mod registry;
pub mod sample;
pub mod task;
