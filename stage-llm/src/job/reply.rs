//! Reply to a question: its text, told while it grows.

use protocol::event::{Event, Finish};
use protocol::stage::{JobPort, Stop};
use tokenizers::Tokenizer;

use crate::job::in_flight::here;
use crate::text::chat::strip;
use crate::text::detokenize::{Detokenizer, decode};

/// Answer as the model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Text without special tokens, stripped.
    pub text: String,
    /// Token ids, the end token included.
    pub token_ids: Vec<u32>,
    /// Reason for which it ended.
    pub finish: Finish,
}

/// Answer that its client is told while it grows.
pub struct Reply<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer<'a>,
    question: Option<u32>,
    ids: Vec<u32>,
    bytes: u64,
}

impl<'a> Reply<'a> {
    /// Answer without a token yet; `question` is its number in events, none for a job with one question.
    pub fn new(tokenizer: &'a Tokenizer, question: Option<u32>) -> Self {
        Reply { tokenizer, detokenizer: Detokenizer::new(tokenizer), question, ids: Vec::new(), bytes: 0 }
    }

    /// Takes the next token, and tells the text that it completes.
    ///
    /// # Errors
    /// Errors of the port.
    pub fn token(&mut self, port: &mut dyn JobPort, id: u32) -> Result<(), Stop> {
        self.ids.push(id);
        let delta = self.detokenizer.push(id).map_err(here)?;
        self.tell(port, delta)
    }

    /// Tells the text that is left, and gives the whole.
    ///
    /// # Errors
    /// Errors of the port.
    pub fn end(mut self, port: &mut dyn JobPort, finish: Finish) -> Result<Written, Stop> {
        let delta = self.detokenizer.flush().map_err(here)?;
        self.tell(port, delta)?;
        let text = decode(self.tokenizer, &self.ids).map_err(here)?;
        Ok(Written { text: strip(&text).to_owned(), token_ids: self.ids, finish })
    }

    /// Tells the client the next piece, and where in the answer it stands.
    fn tell(&mut self, port: &mut dyn JobPort, delta: String) -> Result<(), Stop> {
        if delta.is_empty() {
            return Ok(());
        }
        let (at, question) = (self.bytes, self.question);
        self.bytes += delta.len() as u64;
        port.event(Event::Text { delta, at, question })
    }
}
