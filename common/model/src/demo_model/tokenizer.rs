//! The tokenizer files: a byte-fallback BPE in Gemma's layout.
//!
//! `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, `<start_of_turn>` 106, `<end_of_turn>` 107, `\n` 108, `\n\n` 109, 256 byte
//! tokens, then characters and merges learned from a page of English. `tokenizer.json` and `tokenizer_config.json` next to
//! this file are what `build_tokenizer(DIR, 512)` of `tests/oracle/vidi_oracle.py` wrote, unchanged.

use std::fmt::Write;

/// Entries of the learned vocabulary; a larger one is filled up with `<unused_tail512>`, `<unused_tail513>`, ...
pub const LEARNED_VOCABULARY: u64 = 512;

const TOKENIZER: &str = include_str!("tokenizer.json");
/// Follows the last entry of the vocabulary.
const END_OF_VOCABULARY: &str = "\n    },\n    \"merges\"";

/// The text of `tokenizer.json` with `vocabulary` entries, at least [`LEARNED_VOCABULARY`].
pub fn json(vocabulary: u64) -> String {
    let (head, tail) =
        TOKENIZER.split_once(END_OF_VOCABULARY).expect("the embedded file has a vocabulary, then merges");
    let mut text = head.to_owned();
    for id in LEARNED_VOCABULARY..vocabulary {
        write!(text, ",\n      \"<unused_tail{id}>\": {id}").expect("a String takes any text");
    }
    text + END_OF_VOCABULARY + tail
}

/// The text of `tokenizer_config.json`, which holds the chat template.
pub fn config() -> String {
    include_str!("tokenizer_config.json").to_owned()
}
