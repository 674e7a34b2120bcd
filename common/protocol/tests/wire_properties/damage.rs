//! Bytes that no honest sender writes: cut, flipped, invented.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use protocol::control::{ControlReply, ControlRequest};
use protocol::event::JobEvent;
use protocol::message::{
    DecodeRequest, FeatureBatch, FrameBatch, JobRequest, PcmWindow, ProbeReply, ProbeRequest, TokenBatch,
};
use protocol::report::Report;
use protocol::wire::{
    Encoding, MAX_DEPTH, MAX_VALUES, Message, WireError, WireErrorKind, decode, decode_any, encode, encode_as,
};

use crate::allocation;
use crate::samples;

/// Bytes that decoding may hold for each byte of the body: a list of one-byte numbers becomes numbers of eight.
const DATA_FACTOR: usize = 8;
/// The same for messages with flattened or untagged parts: serde keeps them as generic values of 32 bytes first, in
/// lists that double as they grow, and tries an untagged one once for each variant.
const CLIENT_FACTOR: usize = 96;
/// What decoding may hold of its own: the walk's levels, the text of an error.
const OWN: usize = 8 << 10;

/// Reads a body as a message of one type. What comes out is an error, or passes its own check.
type Read = fn(&[u8]) -> Result<(), WireError>;

fn checked<M: Message>(message: Result<M, WireError>) -> Result<(), WireError> {
    let message = message?;
    message.check().expect("decode checks");
    Ok(())
}

/// One message of every type with bodies of it and the reader of its type.
fn every_type() -> Vec<(&'static str, Vec<u8>, Read, usize)> {
    let mut runner = TestRunner::deterministic();
    let mut all: Vec<(&'static str, Vec<u8>, Read, usize)> = Vec::new();
    macro_rules! data {
        ($name:literal, $strategy:expr, $type:ty) => {
            let sample = $strategy.new_tree(&mut runner).unwrap().current();
            all.push(($name, encode(&sample), |body| checked(decode::<$type>(body)), DATA_FACTOR));
        };
    }
    macro_rules! client {
        ($name:literal, $strategy:expr, $type:ty) => {
            for encoding in [Encoding::MessagePack, Encoding::Json] {
                let sample = $strategy.new_tree(&mut runner).unwrap().current();
                let read: Read = |body| checked(decode_any::<$type>(body));
                all.push(($name, encode_as(encoding, &sample), read, CLIENT_FACTOR));
            }
        };
    }
    for _ in 0..4 {
        data!("tokens", samples::tokens(6), TokenBatch<'_>);
        data!("features", samples::features(6), FeatureBatch<'_>);
        data!("decode", samples::decode_request(), DecodeRequest);
        data!("report", samples::report(), Report);
        client!("job", samples::request(), JobRequest);
        client!("probe", samples::probe_request(), ProbeRequest);
        client!("probe reply", samples::probe_reply(), ProbeReply);
        client!("event", samples::event(), JobEvent);
        client!("control", samples::control_request(), ControlRequest);
        client!("control reply", samples::control_reply(), ControlReply);
    }
    let absent = samples::frames(1).prop_filter("absent", |f| f.plan.image.is_none());
    data!("no frames", absent, FrameBatch<'_>);
    let short = samples::window(3200u64..5000);
    data!("sound", short, PcmWindow<'_>);
    all
}

/// Reads under the count: no panic, no allocation that the bytes do not back.
fn read(name: &str, body: &[u8], read: Read, factor: usize) -> Result<(), WireError> {
    let (outcome, allocated) = allocation::count(|| read(body));
    let allowed = factor * body.len() + OWN;
    assert!(
        allocated.largest <= allowed && allocated.peak <= allowed,
        "{name}: {allocated:?} for {} bytes, {allowed} allowed; {outcome:?}; {body:02x?}",
        body.len()
    );
    outcome
}

#[test]
fn a_message_cut_at_any_byte_is_a_typed_error() {
    for (name, body, reader, factor) in every_type() {
        assert_eq!(read(name, &body, reader, factor), Ok(()), "{name}");
        // A message of 40 kB is cut everywhere near its ends, and here and there between.
        for end in (0..body.len()).filter(|&end| end < 2000 || end + 200 > body.len() || end % 97 == 0) {
            let error = read(name, &body[..end], reader, factor).expect_err(name);
            let kinds = [WireErrorKind::Malformed, WireErrorKind::Schema];
            assert!(kinds.contains(&error.kind()), "{name} cut at {end}: {error}");
        }
    }
}

#[test]
fn a_message_with_any_byte_flipped_is_a_typed_error_or_a_valid_message() {
    for (name, body, reader, factor) in every_type() {
        let mut flipped = body.clone();
        for at in (0..body.len()).filter(|&at| at < 2000 || at % 97 == 0) {
            for pattern in [0x01, 0x02, 0x10, 0x20, 0x40, 0x80, 0x7f, 0xff] {
                flipped[at] = body[at] ^ pattern;
                let _ = read(name, &flipped, reader, factor);
            }
            for value in [0x00, 0xc0, 0xc1, 0xc6, 0xdb, 0xdd, 0xdf, 0xff, b'{', b'"'] {
                flipped[at] = value;
                let _ = read(name, &flipped, reader, factor);
            }
            flipped[at] = body[at];
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_at_all_make_a_reader_panic_or_allocate(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (name, reader, factor) in readers() {
            let _ = read(name, &bytes, reader, factor);
            let json = [b"{\"v\":1,", &bytes[..]].concat();
            let _ = read(name, &json, reader, factor);
        }
    }
}

fn readers() -> Vec<(&'static str, Read, usize)> {
    vec![
        ("frames", |b| checked(decode::<FrameBatch<'_>>(b)), DATA_FACTOR),
        ("sound", |b| checked(decode::<PcmWindow<'_>>(b)), DATA_FACTOR),
        ("features", |b| checked(decode::<FeatureBatch<'_>>(b)), DATA_FACTOR),
        ("tokens", |b| checked(decode::<TokenBatch<'_>>(b)), DATA_FACTOR),
        ("decode", |b| checked(decode::<DecodeRequest>(b)), DATA_FACTOR),
        ("report", |b| checked(decode::<Report>(b)), DATA_FACTOR),
        ("job", |b| checked(decode_any::<JobRequest>(b)), CLIENT_FACTOR),
        ("probe reply", |b| checked(decode_any::<ProbeReply>(b)), CLIENT_FACTOR),
        ("event", |b| checked(decode_any::<JobEvent>(b)), CLIENT_FACTOR),
        ("control", |b| checked(decode_any::<ControlRequest>(b)), CLIENT_FACTOR),
    ]
}

/// Every reader's error for the same bytes.
fn kinds(body: &[u8]) -> Vec<WireErrorKind> {
    readers().into_iter().map(|(name, reader, f)| read(name, body, reader, f).expect_err(name).kind()).collect()
}

fn all_say(body: &[u8], kind: WireErrorKind) {
    assert!(kinds(body).iter().all(|k| *k == kind), "{:?} for {:02x?}", kinds(body), &body[..body.len().min(40)]);
}

#[test]
fn lengths_that_no_bytes_back_are_malformed() {
    for marker in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
        for length in [[0xff; 4], [0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 9]] {
            let mut body = vec![marker];
            body.extend(length);
            all_say(&body, WireErrorKind::Malformed);
            // The same as the value of a field.
            let field = [&[0x81, 0xa1, b'v'], &body[..]].concat();
            all_say(&field, WireErrorKind::Malformed);
        }
    }
    all_say(&[0xde, 0xff, 0xff], WireErrorKind::Malformed);
    all_say(&[0xdc, 0xff, 0xff], WireErrorKind::Malformed);
}

#[test]
fn the_reserved_marker_and_trailing_bytes_are_malformed() {
    all_say(&[0xc1], WireErrorKind::Malformed);
    all_say(&[0x81, 0xa1, b'v', 0xc1], WireErrorKind::Malformed);
    all_say(&[0x81, 0xa1, b'v', 0x01, 0x00], WireErrorKind::Malformed);
    all_say(&[], WireErrorKind::Malformed);
}

#[test]
fn deep_nesting_is_too_complex_and_no_stack_overflows() {
    for open in [0x91, 0x81] {
        let body = vec![open; 1 << 20];
        all_say(&body, WireErrorKind::TooComplex);
    }
    let levels = |n: usize| [&vec![0x91; n][..], &[0x01]].concat();
    all_say(&levels(MAX_DEPTH + 1), WireErrorKind::TooComplex);
    assert!(kinds(&levels(MAX_DEPTH)).iter().all(|k| *k == WireErrorKind::Schema));
    let json = [br#"{"v":1,"job":"#, "[".repeat(1 << 20).as_bytes()].concat();
    assert!(decode_any::<JobRequest>(&json).is_err());
    assert!(decode_any::<JobEvent>(&json).is_err());
}

#[test]
fn more_values_than_any_message_has_are_too_complex() {
    let n = MAX_VALUES as u32 + 1;
    let mut body = vec![0xdd];
    body.extend(n.to_be_bytes());
    body.resize(body.len() + n as usize, 0xc0);
    all_say(&body, WireErrorKind::TooComplex);
}

#[test]
fn another_version_is_called_that_whatever_else_is_wrong() {
    for v in [0u8, 2, 127] {
        all_say(&[0x81, 0xa1, b'v', v], WireErrorKind::Version);
        let json = format!(r#"{{"v": {v}, "nothing": "else"}}"#);
        assert_eq!(decode_any::<JobRequest>(json.as_bytes()).unwrap_err().kind(), WireErrorKind::Version);
        assert_eq!(decode_any::<JobEvent>(json.as_bytes()).unwrap_err().kind(), WireErrorKind::Version);
        assert_eq!(decode_any::<ControlRequest>(json.as_bytes()).unwrap_err().kind(), WireErrorKind::Version);
    }
}

/// A token batch as free-form values, so that any field can lie.
fn lying(change: impl Fn(&mut serde_json::Value)) -> Result<(), WireErrorKind> {
    let mut batch = serde_json::json!({
        "v": 1, "job": "a", "modality": "image", "offset": 0,
        "plan": {"content_id": "", "duration_s": 2.0,
                 "image": {"frame_step": 1, "frames": 2, "grid": [14, 14], "tokens": 392, "replaced": []},
                 "audio": null},
        "tensor": {"dtype": "f32", "shape": [1, 2], "data": [0, 0, 0, 0, 0, 0, 0, 0]},
    });
    change(&mut batch);
    let body = encode(&batch);
    read("tokens", &body, |b| checked(decode::<TokenBatch<'_>>(b)), DATA_FACTOR).map_err(|e| e.kind())
}

#[test]
fn shapes_that_overflow_or_that_no_bytes_back_are_shape_errors() {
    assert_eq!(lying(|_| ()), Ok(()));
    for lie in [
        &[u64::MAX, 2][..],
        &[1 << 33, 1 << 33],
        &[1 << 62, 1],
        &[u64::MAX, u64::MAX, u64::MAX],
        &[],
        &[1; 9],
        &[0, u64::MAX],
        &[7, 7],
        &[2],
        &[2, 0],
        &[1, 2, 1],
    ] {
        assert_eq!(lying(|b| b["tensor"]["shape"] = lie.into()), Err(WireErrorKind::Shape), "{lie:?}");
    }
    assert_eq!(lying(|b| b["tensor"]["dtype"] = "u8".into()), Err(WireErrorKind::Shape));
}

#[test]
fn fields_of_the_wrong_kind_are_schema_errors_and_contradictions_value_errors() {
    use serde_json::json;
    let changed = |path: &str, to: serde_json::Value| lying(|b| *b.pointer_mut(path).unwrap() = to.clone());
    for (path, to) in [
        ("/tensor/shape", json!([-1, 2])),
        ("/tensor/shape", json!(null)),
        ("/tensor/dtype", json!("f64")),
        ("/tensor/data", json!([-1])),
        ("/offset", json!(-1)),
        ("/offset", json!(1.5)),
        ("/job", json!("a/b")),
        ("/job", json!("")),
        ("/modality", json!("smell")),
        ("/plan", json!({})),
        ("/plan/image/frames", json!(-2)),
        ("/v", json!(-1)),
    ] {
        assert_eq!(changed(path, to.clone()), Err(WireErrorKind::Schema), "{path} {to}");
    }
    for (path, to) in [
        ("/offset", json!(392)),
        ("/offset", json!(u64::MAX)),
        ("/modality", json!("audio")),
        ("/plan/duration_s", json!(-1.0)),
        ("/plan/content_id", json!("x".repeat(300))),
        ("/plan/image", json!(null)),
        ("/plan/image/frames", json!(3)),
        ("/plan/image/frames", json!(u64::MAX)),
        ("/plan/image/frame_step", json!(0)),
        ("/plan/image/grid", json!([13, 14])),
        ("/plan/image/tokens", json!(393)),
        ("/plan/image/replaced", json!([1, 0])),
        ("/plan/image/replaced", json!([1, 1])),
        ("/plan/image/replaced", json!([2])),
    ] {
        assert_eq!(changed(path, to.clone()), Err(WireErrorKind::Value), "{path} {to}");
    }
}

#[test]
fn large_inventions_cost_in_proportion_to_their_bytes() {
    let many = 200_000u32;
    for item in [&[0xc0][..], &[0x01], &[0xa0], &[0x90], &[0x80], &[0x81, 0x01, 0x01]] {
        for key in ["x", "shape", "kind", "done", "job", "plan", "token_ids", "codecs"] {
            let mut body = vec![0x82, 0xa1, b'v', 0x01, 0xa0 + key.len() as u8];
            body.extend(key.bytes());
            body.push(0xdd);
            body.extend(many.to_be_bytes());
            body.extend(item.repeat(many as usize));
            for (name, reader, factor) in readers() {
                // A field that nobody knows is passed over, so a message may still be one.
                let _ = read(name, &body, reader, factor);
            }
        }
    }
    for item in ["null,", "1,", "[],", "{},", "\"\","] {
        let json = format!("{{\"kind\":\"text\",\"delta\":[{}0]}}", item.repeat(many as usize));
        assert!(read("event", json.as_bytes(), |b| checked(decode_any::<JobEvent>(b)), CLIENT_FACTOR).is_err());
        assert!(read("probe reply", json.as_bytes(), |b| checked(decode_any::<ProbeReply>(b)), CLIENT_FACTOR).is_err());
    }
}

#[test]
fn json_of_a_client_that_is_wrong_is_a_typed_error() {
    use WireErrorKind::{Malformed, Schema, Value};
    for (fields, kind) in [
        (r#""max_new_tokens": -1"#, Schema),
        (r#""max_new_tokens": 0"#, Value),
        (r#""max_new_tokens": 1e3"#, Schema),
        (r#""max_new_tokens": 99999999999999999999999"#, Schema),
        (r#""priority": 10"#, Value),
        (r#""priority": 256"#, Schema),
        (r#""seed": -1"#, Schema),
        (r#""fps": 0"#, Value),
        (r#""fps": 1e999"#, Malformed),
        (r#""fps": NaN"#, Malformed),
        (r#""fps": null"#, Schema),
        (r#""temperature": -0.1"#, Value),
        (r#""top_p": 0"#, Value),
        (r#""deadline_s": -5"#, Value),
        (r#""span": [3, 2]"#, Value),
        (r#""span": [1]"#, Schema),
        (r#""span": [-1, 2]"#, Value),
        (r#""query": "\ud800""#, Malformed),
        (r#""query": ["a"]"#, Schema),
        (r#""task": 7"#, Schema),
    ] {
        let json = format!(r#"{{"job": "a", "video": "x.mp4", {fields}}}"#);
        let error = read("job", json.as_bytes(), |b| checked(decode_any::<JobRequest>(b)), CLIENT_FACTOR).unwrap_err();
        assert_eq!(error.kind(), kind, "{json}: {error}");
    }
    for (json, kind) in
        [("{}", Schema), (r#"{"job": "", "video": "x"}"#, Schema), (r#"{"job": "a"} x"#, Malformed), ("{", Malformed)]
    {
        assert_eq!(decode_any::<JobRequest>(json.as_bytes()).unwrap_err().kind(), kind, "{json}");
    }
    assert_eq!(decode_any::<ControlRequest>(br#"{"stage": "nonsense"}"#).unwrap_err().kind(), Schema);
    assert_eq!(decode_any::<ControlRequest>(b"{\"instance\": \"\xff\"}").unwrap_err().kind(), Malformed);
    assert_eq!(
        decode_any::<JobEvent>(br#"{"job":"a","seq":0,"at_ms":0,"kind":"nonsense"}"#).unwrap_err().kind(),
        Schema
    );
}
