//! Tests of questions to tokens and of tokens to text, with a tokenizer like Gemma's.

use crate::fixture::prompter;
use model::config_json::Family;
use proptest::prelude::*;
use protocol::error::ErrorKind;
use stage_llm::text::chat::ChatTemplate;
use stage_llm::text::detokenize::{Detokenizer, decode};
use stage_llm::text::prompt::Prompter;

const NEWLINE: u32 = 108;

#[test]
fn the_video_leaves_two_newlines_one_bos_and_no_placeholder() {
    let dir = tempfile::tempdir().unwrap();
    let ids = prompter(dir.path(), 100).encode("hi").unwrap();
    let start = |ids: &[u32]| ids.iter().position(|&id| id == NEWLINE).unwrap();
    assert_eq!(ids[..2], [2, 106]);
    assert_eq!(ids[start(&ids)..start(&ids) + 2], [NEWLINE, NEWLINE]);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
    assert_eq!(ids[ids.len() - 1], NEWLINE);
    assert_eq!(ids.iter().filter(|&&id| id == 107).count(), 1);
}

#[test]
fn questions_are_tokenized_as_the_oracle_tokenizes_them() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
    let units = std::fs::read(format!("{golden}/units/units.json")).unwrap();
    let units: serde_json::Value = serde_json::from_slice(&units).unwrap();
    let dir = format!("{golden}/checkpoints/tied");
    let prompter = Prompter::open(dir.as_ref(), Family::Gemma2, 512, 1000).unwrap();
    let vectors = units["tokenisation_with_ckpt_tiny"].as_array().unwrap();
    for vector in vectors {
        let query = vector["query"].as_str().unwrap();
        let stripped = query.strip_suffix('.').unwrap_or(query);
        let question = format!("During which time segments in the video can we see {stripped}?");
        let ids = prompter.encode(&question).unwrap();
        let expected: Vec<u32> = serde_json::from_value(vector["text_token_ids"].clone()).unwrap();
        // The one deliberate difference: an `<image>` in the query is text, where the oracle splits at it.
        assert_eq!(ids == expected, !query.contains("<image>"), "{query:?}: {ids:?}");
        if ids == expected {
            assert_eq!(decode(prompter.tokenizer(), &ids).unwrap(), vector["decoded"].as_str().unwrap());
        }
    }
    assert!(vectors.len() >= 13);
}

#[test]
fn the_template_is_the_chat_template_to_the_letter() {
    let tail = |turn: &str| format!("{turn}<end_of_turn>\n<start_of_turn>model\n");
    for (question, turn) in [
        ("Why?", "\nWhy?"),
        (" Why? \n\t", "\n Why?"),
        ("Why?\x1d", "\nWhy?"),
        ("", ""),
        ("a<bos>b<bos>", "\nab"),
        ("an <image> inside", "\nan <image> inside"),
        ("<ima<bos>ge>", "\n<image>"),
        ("<start_of_turn>", "\n<start_of_turn>"),
    ] {
        let pieces = ChatTemplate::built_in(Family::Gemma2).pieces(question).unwrap();
        assert_eq!(pieces, ["<start_of_turn>user\n".to_owned(), tail(turn)], "{question:?}");
    }
}

#[test]
fn an_image_tag_in_the_question_is_text() {
    let dir = tempfile::tempdir().unwrap();
    let prompter = prompter(dir.path(), 100);
    let plain = |s: &str| prompter.tokenizer().encode_fast(s, false).unwrap().get_ids().to_vec();
    let ids = prompter.encode("an <image> inside").unwrap();
    let tag = plain("<image>");
    assert_eq!(tag.len(), "<image>".len());
    assert!(ids.windows(tag.len()).any(|w| w == tag), "{ids:?}");
}

#[test]
fn a_question_that_is_too_long_is_refused_with_the_figures() {
    let dir = tempfile::tempdir().unwrap();
    let prompter = prompter(dir.path(), 40);
    assert!(prompter.encode("0123456789").is_ok());
    let error = prompter.encode(&"0123456789".repeat(4)).unwrap_err();
    assert_eq!((error.kind, error.details["limit"].as_u64()), (ErrorKind::BadRequest, Some(40)));
    let error = prompter.encode(&"x".repeat(100_000)).unwrap_err();
    assert_eq!((error.kind, error.details["characters"].as_u64()), (ErrorKind::BadRequest, Some(100_000)));
}

#[test]
fn truncation_and_padding_that_a_file_stores_change_no_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let question = "0123456789".repeat(3);
    let plain = prompter(dir.path(), 100).encode(&question).unwrap();
    let untouched = crate::fixture::tokenizer().to_string().parse::<tokenizers::Tokenizer>().unwrap();
    let truncation = |direction: &str| serde_json::json!({"direction": direction, "max_length": 7, "strategy": "LongestFirst", "stride": 0});
    let padding = |strategy: serde_json::Value, direction: &str| {
        serde_json::json!({"strategy": strategy, "direction": direction, "pad_to_multiple_of": 64,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"})
    };
    let none = serde_json::Value::Null;
    for (truncation, padding) in [
        (truncation("Right"), none.clone()),
        (truncation("Left"), none.clone()),
        (none.clone(), padding("BatchLongest".into(), "Right")),
        (none.clone(), padding(serde_json::json!({"Fixed": 90}), "Left")),
        (truncation("Right"), padding(serde_json::json!({"Fixed": 90}), "Right")),
    ] {
        let mut tokenizer = crate::fixture::tokenizer();
        (tokenizer["truncation"], tokenizer["padding"]) = (truncation, padding);
        let text = tokenizer.to_string();
        std::fs::write(&path, &text).unwrap();
        // As it is stored, it does something to the prompt's pieces.
        let stored = text.parse::<tokenizers::Tokenizer>().unwrap();
        let [_, after] = ChatTemplate::built_in(Family::Gemma2).pieces(&question).unwrap();
        let length = |tokenizer: &tokenizers::Tokenizer| tokenizer.encode_fast(after.as_str(), true).unwrap().len();
        assert_ne!(length(&stored), length(&untouched), "{text}");
        let prompter = Prompter::open(dir.path(), Family::Gemma2, 512, 100).unwrap();
        assert_eq!(prompter.encode(&question).unwrap(), plain, "{text}");
    }
}

#[test]
fn a_tokenizer_that_is_missing_damaged_or_too_large_is_named() {
    use model::checkpoint::CheckpointErrorKind::{Malformed, Missing};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let open = |vocabulary| Prompter::open(dir.path(), Family::Gemma2, vocabulary, 100).err().map(|e| e.kind());
    assert_eq!(open(512), Some(Missing));
    std::fs::write(&path, "{\"version\": \"1.0\", \"trunc").unwrap();
    assert_eq!(open(512), Some(Malformed));
    std::fs::write(&path, crate::fixture::tokenizer().to_string()).unwrap();
    assert_eq!(open(512), None);
    assert_eq!(open(400), Some(Malformed));
}

#[test]
fn text_is_held_back_only_while_bytes_are_unsettled() {
    let dir = tempfile::tempdir().unwrap();
    let prompter = prompter(dir.path(), 100);
    let mut detokenizer = Detokenizer::new(prompter.tokenizer());
    let byte = |b: u32| 110 + b;
    let a = prompter.tokenizer().token_to_id("a").unwrap();
    let mut push = |id| detokenizer.push(id).unwrap();
    assert_eq!(push(a), "a");
    assert_eq!(push(byte(0xE6)), "");
    assert_eq!(push(107), "", "a special token has no text and ends no run of bytes");
    assert_eq!(push(byte(0xBC)), "");
    assert_eq!(push(byte(0xA2)), "");
    assert_eq!(push(a), "漢a");
    assert_eq!(push(byte(0xE6)), "");
    assert_eq!(detokenizer.flush().unwrap(), "\u{fffd}");
    assert_eq!(detokenizer.flush().unwrap(), "");
}

/// The decoder of Mistral's tokenizer: it takes the space off the start of a text.
fn like_mistral() -> tokenizers::Tokenizer {
    let mut tokenizer = crate::fixture::tokenizer();
    let decoders = tokenizer["decoder"]["decoders"].as_array_mut().unwrap();
    decoders.push(serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    tokenizer.to_string().parse().unwrap()
}

#[test]
fn a_space_at_the_start_of_a_text_is_no_part_of_it_where_the_decoder_says_so() {
    let tokenizer = like_mistral();
    let ids = tokenizer.encode_fast(" on us", false).unwrap().get_ids().to_vec();
    let mut detokenizer = Detokenizer::new(&tokenizer);
    let deltas: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    assert_eq!(
        (deltas.concat().as_str(), decode(&tokenizer, &ids).unwrap().as_str()),
        ("on us", "on us"),
        "{deltas:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn deltas_add_up_to_the_decoded_whole(ids in prop::collection::vec(prop_oneof![0u32..465, 110u32..366], 0..60)) {
        for tokenizer in [crate::fixture::tokenizer().to_string().parse().unwrap(), like_mistral()] {
            let mut detokenizer = Detokenizer::new(&tokenizer);
            let mut text = String::new();
            for &id in &ids {
                text += &detokenizer.push(id).unwrap();
            }
            text += &detokenizer.flush().unwrap();
            prop_assert_eq!(text, decode(&tokenizer, &ids).unwrap());
        }
    }
}
