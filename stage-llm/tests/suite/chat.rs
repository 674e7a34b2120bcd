//! Tests of chat templates, questions and answers of both families against the oracle's (tests/golden/units/texts.json): each file
//! of a checkpoint counts in its order, and what makes no prompt is refused by name.

use std::path::Path;

use model::checkpoint::{CheckpointError, CheckpointErrorKind};
use model::config_json::Family;
use serde_json::{Value, json};
use stage_llm::job::work::{Work, title};
use stage_llm::text::chat::{ChatTemplate, Origin, PLACEHOLDER};
use stage_llm::text::prompt::Prompter;
use stage_llm::text::reading::{Parser, Watched};
use stage_llm::text::registry::Tasks;

use crate::fixture::{VOCABULARY, request};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");

/// Part of the oracle's texts.
fn texts(name: &str) -> Value {
    let all = std::fs::read_to_string(format!("{GOLDEN}/units/texts.json")).unwrap();
    serde_json::from_str::<Value>(&all).unwrap()[name].take()
}

fn text<'a>(case: &'a Value, name: &str) -> &'a str {
    case[name].as_str().unwrap()
}

fn family_of(case: &Value) -> Family {
    Family::of_model_type(text(case, "model_type")).unwrap()
}

/// Template of a directory with these files.
fn read(family: Family, files: &[(&str, &str)]) -> Result<ChatTemplate, CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    ChatTemplate::read(dir.path(), family)
}

fn config(template: Value) -> String {
    json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "special": true }, "chat_template": template })
        .to_string()
}

fn prompt(template: &ChatTemplate, question: &str) -> String {
    template.pieces(question).unwrap().join(PLACEHOLDER)
}

fn refusal(family: Family, files: &[(&str, &str)]) -> (CheckpointErrorKind, String) {
    let error = read(family, files).err().expect("it is refused");
    (error.kind(), error.to_string())
}

#[test]
fn prompts_and_their_tokens_are_the_references() {
    let templates = texts("templates");
    let prompters: Vec<(&String, Prompter)> = templates
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, stored)| {
            let mut config = stored["special_tokens"].clone();
            config["chat_template"] = stored["chat_template"].clone();
            let dir = tempfile::tempdir().unwrap();
            let tokenizer = format!("{GOLDEN}/checkpoints/{}/tokenizer.json", text(stored, "checkpoint"));
            std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
            std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            (name, Prompter::open(dir.path(), family_of(stored), VOCABULARY, 1000).unwrap())
        })
        .collect();
    let built_in = [("gemma-2", Family::Gemma2), ("mistral-v0.3", Family::Mistral)];
    let cases = texts("prompts");
    for case in cases.as_array().unwrap() {
        let (name, question) = (text(case, "template"), text(case, "question"));
        let (_, prompter) = prompters.iter().find(|(known, _)| *known == name).unwrap();
        let pieces: [String; 2] = serde_json::from_value(case["pieces"].clone()).unwrap();
        assert_eq!(prompter.template().pieces(question).unwrap(), pieces, "{name} {question:?}");
        let ids: Vec<u32> = serde_json::from_value(case["text_token_ids"].clone()).unwrap();
        assert_eq!(prompter.encode(question).unwrap(), ids, "{name} {question:?}");
        if let Some((_, family)) = built_in.iter().find(|(known, _)| *known == name) {
            assert_eq!(ChatTemplate::built_in(*family).pieces(question).unwrap(), pieces, "{question:?}");
        }
    }
    assert!(cases.as_array().unwrap().len() >= 136 && prompters.len() == 4);
}

#[test]
fn questions_and_answers_are_the_references_of_their_family() {
    for case in texts("retrieval").as_array().unwrap() {
        let (tasks, query) = (Tasks::of(family_of(case)), text(case, "query"));
        match tasks.get("retrieval").unwrap().question(query, case["duration"].as_f64().unwrap()) {
            Ok(question) => assert_eq!(question, text(case, "question")),
            Err(error) => assert!(query.trim_end_matches('.').is_empty(), "{query:?}: {error}"),
        }
    }
    for case in texts("answers").as_array().unwrap() {
        let parser = Tasks::of(family_of(case)).get("retrieval").unwrap().parser;
        let duration_s = case["duration"].as_f64().unwrap();
        let read = parser.read(text(case, "text"), Watched::whole(duration_s));
        let expected = if case["ours"].is_null() { case } else { &case["ours"] };
        let mut seconds: Vec<(f64, f64)> = serde_json::from_value(expected["seconds"].clone()).unwrap();
        if text(case, "text").chars().any(|c| c.is_numeric() && !c.is_ascii()) {
            // Digits are ASCII's here, in both families.
            seconds.clear();
        }
        let got: Vec<(f64, f64)> = read.ranges.iter().map(|range| (range.start_s, range.end_s)).collect();
        assert_eq!(got, seconds, "{case}");
        assert_eq!(read.reason.is_some(), seconds.is_empty(), "{case}");
        if family_of(case) == Family::Mistral {
            assert_eq!(read.reference_text.unwrap_or_default(), text(expected, "formatted"), "{case}");
        } else {
            assert!(read.reference_text.is_none(), "clients write it themselves: {case}");
        }
    }
}

#[test]
fn white_space_around_blocks_and_what_templates_do_besides_are_jinjas() {
    // Made with jinja2 3.1.6 in transformers' environment: trim_blocks, lstrip_blocks, loop controls.
    let template = r#"{# A comment. #}
{% macro turn(message) %}
  <|{{ message.role }}|>
	{{ message.content.strip() }}{{ eos_token }}
{% endmacro %}
{% set ns = namespace(said=false) -%}
{% for message in messages %}
    {% if loop.previtem is defined %}
    {% break %}
    {% endif %}
    {% if message.get('role') == 'user' and message.content.startswith('<image>') %}
{{ turn(message) }}
        {% set ns.said = true %}
    {% endif %}
{% endfor %}
{% if ns.said and not tools %}
  {{ '<|end|>' }}
{% endif %}

"#;
    let template = read(Family::Mistral, &[("chat_template.jinja", template)]).unwrap();
    for (question, turn) in [("", ""), ("Why?", "\nWhy?"), (" Why?\x1d \n\t", "\n Why?")] {
        let expected = format!("  <|user|>\n\t<image>{turn}</s>\n\n  <|end|>\n");
        assert_eq!(prompt(&template, question), expected, "{question:?}");
    }
}

#[test]
fn the_template_of_each_golden_checkpoint_is_its_own() {
    for (name, family) in
        [("tied", Family::Gemma2), ("realdims", Family::Gemma2), ("7b", Family::Mistral), ("7b-tied", Family::Mistral)]
    {
        let template = ChatTemplate::read(&Path::new(GOLDEN).join("checkpoints").join(name), family).unwrap();
        assert_eq!(template.origin(), &Origin::File("tokenizer_config.json"), "{name}");
    }
}

#[test]
fn each_file_counts_in_its_order_and_a_checkpoint_of_the_9b_without_any_gets_gemmas() {
    let of = |word: &str| format!("{word} {{{{ messages[0].content }}}}");
    let jinja = ("chat_template.jinja", &*of("jinja"));
    let (list, old) = (
        config(json!([{ "name": "tool_use", "template": of("tools") }, { "name": "default", "template": of("list") }])),
        json!({ "chat_template": of("processor") }).to_string(),
    );
    let (list, text) = (("tokenizer_config.json", &*list), config(json!(of("text"))));
    let (text, old) = (("tokenizer_config.json", &*text), ("chat_template.json", &*old));
    for (files, word) in
        [(&[jinja, text, old][..], "jinja"), (&[text, old], "text"), (&[list, old], "list"), (&[old], "processor")]
    {
        for family in Family::ALL {
            let template = read(family, files).unwrap();
            assert_eq!(prompt(&template, "?"), format!("{word} <image>\n?"));
            assert_eq!(template.origin(), &Origin::File(files[0].0));
        }
    }
    let none = config(Value::Null);
    let (kind, said) = refusal(Family::Mistral, &[("tokenizer_config.json", &none)]);
    assert!(kind == CheckpointErrorKind::Missing && said.contains("tokenizer_config.json"), "{said}");
    let template = read(Family::Gemma2, &[]).unwrap();
    assert!(matches!(template.origin(), Origin::BuiltIn(_)) && template.origin().to_string().contains("Gemma"));
    // Its own special tokens count all the same.
    assert_eq!(read(Family::Gemma2, &[("tokenizer_config.json", &none)]).unwrap().bos(), "<s>");
}

#[test]
fn a_template_that_makes_no_prompt_is_refused_by_name_when_it_is_loaded() {
    for (template, word) in [
        ("{% for message in messages %}", "does not render"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ messages[0].content | nofilter }}", "nofilter"),
        ("{{ messages[0].content.nomethod() }}", "nomethod"),
        ("{{ messages[0].content + missing }}", "does not render"),
        ("{{ strftime_now('%d %b %Y') }}", "strftime_now"),
        ("{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}", "does not render"),
        ("<image>", "leaves the user's message out"),
        ("", "leaves the user's message out"),
        ("{{ messages[0].content | replace('<image>', '') }}", "0 times"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "2 times"),
        ("<image>{{ messages[0].content }}", "2 times"),
        ("{{ messages[0].content | replace('<image>', '') }}<image>", "before <image>"),
    ] {
        let (kind, said) = refusal(Family::Mistral, &[("chat_template.jinja", template)]);
        assert_eq!(kind, CheckpointErrorKind::Malformed, "{template}");
        assert!(said.contains("chat_template.jinja") && said.contains(word), "{template}: {said}");
    }
    for (stored, word) in
        [(json!(7), "neither a text nor a list"), (json!([{ "name": "tool_use", "template": "x" }]), "tool_use")]
    {
        let (kind, said) = refusal(Family::Gemma2, &[("tokenizer_config.json", &config(stored))]);
        assert!(kind == CheckpointErrorKind::Malformed && said.contains(word), "{said}");
    }
    let (kind, said) = refusal(Family::Gemma2, &[("tokenizer_config.json", "[1")]);
    assert!(kind == CheckpointErrorKind::Malformed && said.contains("tokenizer_config.json"), "{said}");
}

#[test]
fn a_question_that_a_template_refuses_fails_its_job() {
    let template = "{{ raise_exception('too odd') if 'odd' in messages[0].content else messages[0].content }}";
    let template = read(Family::Mistral, &[("chat_template.jinja", template)]).unwrap();
    assert!(template.pieces("even").is_ok());
    let error = template.pieces("odd").unwrap_err();
    assert!(error.kind == protocol::error::ErrorKind::Model && error.message.contains("too odd"), "{error}");
}

/// Prompter of a family with the tokenizer of the fixture, whose token at the start of a text is `bos`.
fn prompter(family: Family, bos: &str) -> Prompter {
    let json = crate::fixture::tokenizer().to_string().replace("<bos>", bos);
    Prompter::parse(&json, "tokenizer.json".as_ref(), ChatTemplate::built_in(family), VOCABULARY, 1000).unwrap()
}

#[test]
fn pieces_are_tokenized_on_their_own_with_one_token_at_the_start() {
    let prompter = prompter(Family::Mistral, "<s>");
    let ids = prompter.encode("hi").unwrap();
    let plain = |text: &str| prompter.tokenizer().encode_fast(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [vec![2], plain("[INST] "), plain("\nhi[/INST]")].concat());
}

#[test]
fn vidi_7b_asks_with_the_duration_of_what_is_watched_and_gives_ranges_no_titles() {
    let (tasks, prompter) = (Tasks::of(Family::Mistral), prompter(Family::Mistral, "<s>"));
    let asked = request("a red box.", 12);
    let work = Work::new(&tasks, &asked, &prompter, 40.3).unwrap();
    let question = "Given the frames from a video, answer the time range in percentage that corresponds to query text split by \
                    comma. Video length is: 40.30 and text query is: a red box.";
    assert_eq!(work.questions[0].prompt, prompter.encode(question).unwrap());
    assert!(work.says_duration && work.questions[0].parser == Parser::Reference7b);
    let lengths = Work::new(&tasks, &asked, &prompter, 3600.0).unwrap();
    assert_ne!(lengths.questions[0].prompt, work.questions[0].prompt);

    let composite = |tasks: &Tasks| {
        let request = protocol::message::JobRequest { task: "chapters".to_owned(), ..request("", 12) };
        let work = Work::new(tasks, &request, &prompter, 0.0).unwrap();
        (work.text_tokens(), title(work.task, [0.0, 9.0], &request, &prompter).unwrap().text_tokens())
    };
    assert_eq!(composite(&tasks).0, 0, "no title is asked for");
    let (reserved, asked) = composite(&Tasks::of(Family::Gemma2));
    assert!(reserved > 0 && reserved.abs_diff(asked) < 4, "{reserved} {asked}");
}
