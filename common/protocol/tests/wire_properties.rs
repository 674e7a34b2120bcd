//! The wire format, whatever the bytes: what was written is read, what cannot be read is a typed error, and nothing is
//! allocated that the bytes do not back.

#[path = "wire_properties/allocation.rs"]
mod allocation;
#[path = "wire_properties/damage.rs"]
mod damage;
#[path = "wire_properties/samples.rs"]
mod samples;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use protocol::error::{ErrorKind, JobError};
use protocol::event::{Event, JobEvent};
use protocol::message::{FeatureBatch, FrameBatch, JobId, JobRequest, Output, PcmWindow, TokenBatch};
use protocol::rows::RowSet;
use protocol::tensor::Tensor;
use protocol::wire::{Encoding, Message, WireErrorKind, decode, decode_any, encode, encode_as};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// Encodes, decodes, compares.
fn same<'a, M: Message + Serialize + Deserialize<'a> + PartialEq + std::fmt::Debug>(
    message: &M,
    body: &'a mut Vec<u8>,
) {
    *body = encode(message);
    assert_eq!(&decode::<M>(body).unwrap(), message);
}

/// The same as MessagePack and as JSON, as clients write.
fn same_for_clients<M>(message: &M)
where
    M: Message + Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    for encoding in [Encoding::MessagePack, Encoding::Json] {
        let body = encode_as(encoding, message);
        assert_eq!(Encoding::of(&body), encoding);
        assert_eq!(&decode_any::<M>(&body).unwrap(), message);
    }
    let json = encode_as(Encoding::Json, message);
    for before in [" \r\n\t", "\u{feff}", "\u{feff} \n"] {
        let body = [before.as_bytes(), &json].concat();
        assert_eq!(Encoding::of(&body), Encoding::Json);
        assert_eq!(&decode_any::<M>(&body).unwrap(), message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_are_read_as_they_were_written(
        tokens in samples::tokens(40), features in samples::features(40), decode in samples::decode_request(),
        report in samples::report(),
    ) {
        same(&tokens, &mut Vec::new());
        same(&features, &mut Vec::new());
        same(&decode, &mut Vec::new());
        same(&report, &mut Vec::new());
    }

    #[test]
    fn what_clients_send_and_hear_is_read_as_it_was_written_in_either_encoding(
        request in samples::request(), probe in samples::probe_request(), reply in samples::probe_reply(),
        event in samples::event(), control in samples::control_request(), answer in samples::control_reply(),
    ) {
        same_for_clients(&request);
        same_for_clients(&probe);
        same_for_clients(&reply);
        same_for_clients(&event);
        let text = serde_json::to_value(&event).unwrap();
        prop_assert_eq!(&text["kind"], event.event.kind());
        same_for_clients(&control);
        same_for_clients(&answer);
    }
}

#[test]
fn figures_of_every_json_type_survive_both_encodings() {
    let error = JobError { details: samples::details(), ..JobError::new(ErrorKind::DoesNotFit, "m") };
    same_for_clients(&JobEvent {
        v: 1,
        job: JobId::new("j").unwrap(),
        seq: 0,
        at_ms: 0,
        event: Event::Failed { error },
    });
}

/// How a batch was cut and delivered: limits to cut at, and which parts arrive in which order.
#[derive(Clone, Debug)]
struct Journey {
    /// Extra bytes over one smallest part, for every time that the batch is sent.
    room: Vec<usize>,
    /// Picks parts, one after another, perhaps the same again.
    picks: Vec<usize>,
    /// Whether every part that was not picked arrives at the end.
    complete: bool,
}

fn journey(most: usize) -> impl Strategy<Value = Journey> {
    (prop::collection::vec(0..most, 1..4), prop::collection::vec(any::<usize>(), 0..30), any::<bool>())
        .prop_map(|(room, picks, complete)| Journey { room, picks, complete })
}

/// Cuts, shuffles, repeats and loses parts of a batch; what arrives is the whole, or its first gap is known.
fn travels(
    output: &Output<'_>,
    whole: &Tensor<'_>,
    offset: u64,
    quantum: usize,
    journey: &Journey,
    read: impl Fn(&[u8]) -> (u64, Vec<u8>),
) {
    let (rows, row) = (whole.rows() as u64, whole.row_bytes());
    let mut parts = Vec::new();
    for room in &journey.room {
        let limit = 1024 + quantum * row + room;
        let bodies = output.encode(limit).unwrap();
        for (id, body) in bodies {
            assert!(rows == 0 || body.len() <= limit, "{id}: {} bytes for a limit of {limit}", body.len());
            parts.push(body);
        }
    }
    let mut arriving: Vec<&Vec<u8>> = journey.picks.iter().map(|p| &parts[p % parts.len()]).collect();
    if journey.complete {
        arriving.extend(&parts);
    }
    let (mut seen, mut there) = (RowSet::new(), vec![false; rows as usize]);
    let mut data = vec![0u8; whole.data().len()];
    for body in arriving {
        let (first, bytes) = read(body);
        let start = first - offset;
        let end = start + (bytes.len() / row.max(1)) as u64;
        for new in seen.insert(start..end) {
            let [from, to] = [new.start, new.end].map(|r| r as usize * row);
            data[from..to].copy_from_slice(&bytes[from - start as usize * row..to - start as usize * row]);
            there[new.start as usize..new.end as usize].fill(true);
        }
    }
    let first = there.iter().position(|t| !t);
    let end = first.map(|f| there[f..].iter().position(|&t| t).map_or(rows, |n| (f + n) as u64));
    assert_eq!(seen.first_gap(rows), first.map(|f| f as u64..end.unwrap_or(rows)));
    if journey.complete {
        assert_eq!(first, None);
        assert!(data == whole.data());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tokens_cut_anywhere_in_any_order_and_repeated_are_the_tensor_or_a_known_gap(
        batch in samples::tokens(60), journey in journey(400),
    ) {
        travels(&Output::Tokens(batch.clone()), &batch.tensor, batch.offset, 1, &journey, |body| {
            let part: TokenBatch<'_> = decode(body).unwrap();
            assert_eq!((&part.job, &part.plan, part.modality), (&batch.job, &batch.plan, batch.modality));
            (part.offset, part.tensor.data().to_vec())
        });
    }

    #[test]
    fn features_cut_anywhere_in_any_order_and_repeated_are_the_tensor_or_a_known_gap(
        batch in samples::features(60), journey in journey(400),
    ) {
        travels(&Output::Features(batch.clone()), &batch.tensor, batch.offset, 5, &journey, |body| {
            let part: FeatureBatch<'_> = decode(body).unwrap();
            assert_eq!((&part.job, &part.plan, part.modality), (&batch.job, &batch.plan, batch.modality));
            (part.offset, part.tensor.data().to_vec())
        });
    }
}

proptest! {
    // A frame is 442 kB.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn frames_cut_anywhere_in_any_order_and_repeated_are_the_tensor_or_a_known_gap(
        batch in samples::frames(6), journey in journey(2_000_000),
    ) {
        same(&batch, &mut Vec::new());
        travels(&Output::Frames(batch.clone()), &batch.tensor, batch.offset, 1, &journey, |body| {
            let part: FrameBatch<'_> = decode(body).unwrap();
            assert_eq!((&part.job, &part.plan), (&batch.job, &batch.plan));
            (part.offset, part.tensor.data().to_vec())
        });
    }

    #[test]
    fn a_window_of_sound_travels_whole_or_not_at_all(window in samples::window(3200..1_000_000), limit in 0usize..1_500_000) {
        same(&window, &mut Vec::new());
        match Output::Pcm(window.clone()).encode(limit) {
            Ok(bodies) => {
                prop_assert_eq!(bodies.len(), 1);
                prop_assert!(window.tensor.rows() == 0 || bodies[0].1.len() <= limit);
                prop_assert_eq!(decode::<PcmWindow<'_>>(&bodies[0].1).unwrap(), window);
            }
            Err(e) => {
                prop_assert_eq!(e.kind(), WireErrorKind::Oversize);
                prop_assert!(limit < 1024 + window.tensor.data().len());
            }
        }
    }
}

#[test]
fn a_batch_whose_smallest_part_does_not_fit_is_oversize() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..20 {
        let batch = samples::features(60).new_tree(&mut runner).unwrap().current();
        if batch.tensor.rows() > 0 {
            let output = Output::Features(batch);
            assert_eq!(output.encode(100).unwrap_err().kind(), WireErrorKind::Oversize);
        }
    }
}

#[test]
fn a_client_may_leave_out_what_has_a_default() {
    let json: JobRequest =
        decode_any(br#"{"job": "a-1", "video": "x.mp4", "query": "a cat", "new field": [1]}"#).unwrap();
    assert_eq!(json, JobRequest::new(JobId::new("a-1").unwrap(), "x.mp4", "a cat"));
}

#[test]
fn a_request_for_one_question_is_written_as_before_there_were_several() {
    let request = JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "a cat");
    let value = serde_json::to_value(&request).unwrap();
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let before = [
        "deadline_s",
        "fps",
        "job",
        "max_new_tokens",
        "priority",
        "query",
        "seed",
        "span",
        "task",
        "temperature",
        "top_p",
        "v",
        "video",
    ];
    assert_eq!(names, before);
    let text = serde_json::to_value(Event::Text { delta: "a".to_owned(), at: 0, question: None }).unwrap();
    assert_eq!(text, serde_json::json!({"kind": "text", "delta": "a", "at": 0}));
}

#[test]
fn requests_that_ask_twice_or_too_much_are_refused() {
    let request = || JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "");
    let refused = |request: &JobRequest| request.check().is_err_and(|e| e.kind() == WireErrorKind::Value);
    let several = |count: usize| JobRequest { queries: vec!["a cat".to_owned(); count], ..request() };
    assert!(several(64).check().is_ok() && refused(&several(65)));
    assert!(refused(&JobRequest { query: "a dog".to_owned(), ..several(1) }));
    assert!(
        refused(&JobRequest { pad_s: -1.0, ..request() }) && refused(&JobRequest { join_s: f64::NAN, ..request() })
    );
}
