//! Tokens of a prompt: the chat template around a question, piece by piece (MODEL.md 2.4).

use std::path::Path;

use model::checkpoint::{CheckpointError, CheckpointErrorKind};
use model::config_json::Family;
use protocol::error::{ErrorKind, JobError};
use tokenizers::Tokenizer;

use super::chat::ChatTemplate;

/// File of a checkpoint with its tokenizer.
const TOKENIZER: &str = "tokenizer.json";
/// Most characters of a token, on the average of a whole prompt: Gemma's average is about 4. A question with more
/// characters than this many times the limit is refused before it is tokenized.
const CHARS_PER_TOKEN: usize = 8;

/// Tokenizer of the checkpoint, and the chat template.
pub struct Prompter {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    max_tokens: usize,
}

impl Prompter {
    /// Prompter of a checkpoint directory: its `tokenizer.json`, and its chat template.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::read`] and [`with`](Self::with).
    pub fn open(dir: &Path, family: Family, vocabulary: usize, max_tokens: usize) -> Result<Self, CheckpointError> {
        Prompter::with(dir, ChatTemplate::read(dir, family)?, vocabulary, max_tokens)
    }

    /// Prompter with the `tokenizer.json` of a checkpoint directory.
    ///
    /// # Errors
    /// [`CheckpointErrorKind::Missing`] with the path; those of [`parse`](Self::parse).
    pub fn with(
        dir: &Path,
        template: ChatTemplate,
        vocabulary: usize,
        max_tokens: usize,
    ) -> Result<Self, CheckpointError> {
        let path = dir.join(TOKENIZER);
        let json = std::fs::read_to_string(&path)
            .map_err(|e| CheckpointError::new(CheckpointErrorKind::Missing, format!("{}: {e}", path.display())))?;
        Prompter::parse(&json, &path, template, vocabulary, max_tokens)
    }

    /// Prompter from the text of a `tokenizer.json`; errors call it `path`. Truncation and padding that it stores are switched
    /// off, as transformers does where nobody asks for them.
    ///
    /// # Errors
    /// [`CheckpointErrorKind::Malformed`] with the path; a tokenizer with ids beyond `vocabulary`, the rows of the
    /// model's embedding.
    pub fn parse(
        json: &str,
        path: &Path,
        template: ChatTemplate,
        vocabulary: usize,
        max_tokens: usize,
    ) -> Result<Self, CheckpointError> {
        let malformed =
            |what: String| CheckpointError::new(CheckpointErrorKind::Malformed, format!("{}: {what}", path.display()));
        let mut tokenizer = json.parse::<Tokenizer>().map_err(|e| malformed(e.to_string()))?;
        // What a training run has left in the file would cut the prompt, or fill it up, without a word.
        tokenizer.with_truncation(None).map_err(|e| malformed(e.to_string()))?.with_padding(None);
        let last = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if last as usize >= vocabulary {
            return Err(malformed(format!("has token {last}, the model's embedding {vocabulary} rows")));
        }
        Ok(Prompter { tokenizer, template, max_tokens })
    }

    /// Tokenizer of the checkpoint.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Chat template of the checkpoint.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Tokens that the model reads for a question. The video between the two pieces leaves no token: image and audio
    /// reach the model through attention alone.
    ///
    /// # Errors
    /// `bad_request` for a question that is too long; `model` for a template that does not take it.
    pub fn encode(&self, question: &str) -> Result<Vec<u32>, JobError> {
        let (chars, max_chars) = (question.chars().count(), self.max_tokens.saturating_mul(CHARS_PER_TOKEN));
        if chars > max_chars {
            return Err(too_long("characters", chars, max_chars));
        }
        let [before, after] = self.template.pieces(question)?;
        let mut ids = self.tokenize(&before)?;
        let after = self.tokenize(&after)?;
        let bos = self.tokenizer.token_to_id(self.template.bos());
        // Each piece comes with its own token at the start of a text; the second goes.
        let repeated = bos.is_some() && ids.first().copied() == bos && after.first().copied() == bos;
        ids.extend(&after[usize::from(repeated)..]);
        if ids.len() > self.max_tokens {
            return Err(too_long("tokens", ids.len(), self.max_tokens));
        }
        Ok(ids)
    }

    fn tokenize(&self, piece: &str) -> Result<Vec<u32>, JobError> {
        let encoding = self.tokenizer.encode_fast(piece, true);
        let encoding =
            encoding.map_err(|e| JobError::new(ErrorKind::BadRequest, format!("tokenizing the query failed: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn too_long(unit: &str, length: usize, limit: usize) -> JobError {
    JobError::new(ErrorKind::BadRequest, format!("prompt refused: it has {length} {unit}, at most {limit} are taken"))
        .hint("ask a shorter question")
        .detail(unit, length)
        .detail("limit", limit)
}
