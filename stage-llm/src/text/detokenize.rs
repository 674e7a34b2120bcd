//! Tokens to text while they come.

use protocol::error::{ErrorKind, JobError};
use tokenizers::Tokenizer;

/// Decoder of tokens to pieces of text whose concatenation is the decoded whole, special tokens skipped.
///
/// The text of a byte token (`<0xE6>`) is known only when the run of byte tokens around it ends: a run is one piece of
/// UTF-8, or is replaced as a whole. Text is therefore held back while the last token is a byte token.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// Last token whose text is out: decoders may treat the start of a text specially.
    context: Vec<u32>,
    pending: Vec<u32>,
}

impl<'a> Detokenizer<'a> {
    /// Detokenizer at the start of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Detokenizer { tokenizer, context: Vec::new(), pending: Vec::new() }
    }

    /// Takes the next token and returns the text that it completes, perhaps none.
    ///
    /// # Errors
    /// `internal`, when the tokenizer cannot decode.
    pub fn push(&mut self, id: u32) -> Result<String, JobError> {
        let token = self.tokenizer.id_to_token(id).unwrap_or_default();
        if self.tokenizer.get_added_vocabulary().is_special_token(&token) {
            return Ok(String::new());
        }
        self.pending.push(id);
        if is_byte(&token) { Ok(String::new()) } else { self.flush() }
    }

    /// Returns the text that is still held back, at the end of the text.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn flush(&mut self) -> Result<String, JobError> {
        let Some(&last) = self.pending.last() else { return Ok(String::new()) };
        let before = decode(self.tokenizer, &self.context)?;
        self.context.append(&mut self.pending);
        let text = decode(self.tokenizer, &self.context)?;
        self.context = vec![last];
        Ok(text.get(before.len()..).unwrap_or_default().to_owned())
    }
}

/// Text of tokens, special ones skipped.
///
/// # Errors
/// `internal`, when the tokenizer cannot decode.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, JobError> {
    tokenizer.decode(ids, true).map_err(|e| JobError::new(ErrorKind::Internal, format!("detokenizing failed: {e}")))
}

/// Whether a token is one byte: `<0x00>` to `<0xFF>`.
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
