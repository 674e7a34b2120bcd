//! The tokenizer files: a byte-fallback BPE in the layout of each family's.
//!
//! Vidi 1.5's is Gemma's: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, `<start_of_turn>` 106, `<end_of_turn>` 107, `\n` 108,
//! `\n\n` 109, then 256 byte tokens. Vidi 7B's is that of Mistral v0.3: `<unk>` 0, `<s>` 1, `</s>` 2, `[INST]` 3, `[/INST]` 4,
//! five for tools, then 256 byte tokens. Characters and merges learned from a page of English follow. The JSON files next to this
//! one are what `build_tokenizer(DIR, 512, GEMMA)` and `build_tokenizer(DIR, 512, MISTRAL_V3)` of
//! `tests/oracle/parts/tokenizer.py` wrote, unchanged.

use std::fmt::Write;

use crate::config_json::Family;

/// Entries of the learned vocabularies; a larger one is filled up with `<unused_tail512>`, `<unused_tail513>`, ...
pub const LEARNED_VOCABULARY: u64 = 512;

/// Follows the last entry of the vocabulary.
const END_OF_VOCABULARY: &str = "\n    },\n    \"merges\"";

/// The text of `tokenizer.json` with `vocabulary` entries, at least [`LEARNED_VOCABULARY`].
pub fn json(family: Family, vocabulary: u64) -> String {
    let learned = match family {
        Family::Gemma2 => include_str!("tokenizer.json"),
        Family::Mistral => include_str!("mistral_tokenizer.json"),
    };
    let (head, tail) = learned.split_once(END_OF_VOCABULARY).expect("the embedded file has a vocabulary, then merges");
    let mut text = head.to_owned();
    for id in LEARNED_VOCABULARY..vocabulary {
        write!(text, ",\n      \"<unused_tail{id}>\": {id}").expect("a String takes any text");
    }
    text + END_OF_VOCABULARY + tail
}

/// The text of `tokenizer_config.json`, which holds the chat template.
pub fn config(family: Family) -> &'static str {
    match family {
        Family::Gemma2 => include_str!("tokenizer_config.json"),
        Family::Mistral => include_str!("mistral_tokenizer_config.json"),
    }
}
