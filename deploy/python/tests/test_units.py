"""Parts that need no server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
from fractions import Fraction
from xml.etree import ElementTree

import pytest

from vidi_client import DeadlineError, Done, MediaNotFoundError, Other, Range, VidiError, clips, clock, compat, connect
from vidi_client import errors, events, results, sse
from vidi_client.compat import TimestampRange
from vidi_client.decode import decode
from vidi_client.errors import ProtocolError, from_problem


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:01.00", 1.0),
        ("01:02:03.5", 3723.5),
        ("1:00:00", 3600.0),
        ("90:00", 5400.0),
        ("0:07,25", 7.25),
        (" 12.5 s ", 12.5),
        ("3", 3.0),
        (2, 2.0),
    ],
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert clock.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "a", "1:60", "1:60:00", "1:2:3:4", "-1", -1.0, "1e3", float("nan"), True, None, "1:00:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        clock.parse_seconds(text)


def test_times_are_written_with_all_their_zeros() -> None:
    # The same cases as the gateway's own.
    written = [clock.format_hundredths(s) for s in (1.005, 2.999, 3599.996, 36000.5, -1.0)]
    assert written[1:] == ["00:00:03.00", "01:00:00.00", "10:00:00.50", "00:00:00.00"]
    for seconds in (0.0, 0.01, 59.99, 3599.99, 359999.0):
        assert clock.parse_seconds(clock.format_hundredths(seconds)) == pytest.approx(seconds)


def test_a_range_is_a_tuple_of_seconds_and_a_dictionary_of_texts() -> None:
    one = TimestampRange(70.5, 3723.456)
    start, end = one
    assert (start, end) == (70.5, 3723.456) == one == tuple(one)
    assert isinstance(one, tuple) and one[0] == 70.5 and one[-1] == 3723.456 and one[:1] == (70.5,)
    assert one["start"] == "00:01:10.50" and one["end"] == "01:02:03.46"
    assert dict(one) == {"start": "00:01:10.50", "end": "01:02:03.46"} and one.get("title", "x") == "x"
    assert json.loads(json.dumps([one])) == [[70.5, 3723.456]]
    assert pickle.loads(pickle.dumps(one)) == one and type(pickle.loads(pickle.dumps(one))) is TimestampRange
    with pytest.raises(KeyError):
        one["title"]
    assert sorted([TimestampRange(5, 6), TimestampRange(1, 9)])[0].start == 1


@pytest.mark.parametrize(
    "form",
    [
        TimestampRange(70.5, 75.0),
        Range(70.5, 75.0),
        (70.5, 75),
        ["1:10.5", "75"],
        {"start": "00:01:10.50", "end": 75.0, "title": "x"},
        "00:01:10.50-00:01:15",
    ],
)
def test_ranges_are_taken_in_every_form(form: compat.Timestamp) -> None:
    assert compat.range_of(form) == (70.5, 75.0)


@pytest.mark.parametrize("form", ["00:01", (1,), {"start": 1}, (1, "x"), (1, 2, 3)])
def test_what_is_no_range_is_refused(form: compat.Timestamp) -> None:
    with pytest.raises(ValueError):
        compat.range_of(form)


def result(**fields: object) -> results.Result:
    plain = {"text": "", "finish": "stop", "plan": {"content_id": "x", "duration_s": 100.0}, "model": {"name": "m"}}
    return results.result_of({**plain, **fields})


def test_a_notebook_shows_the_time_line_and_runs_nothing() -> None:
    bad = "<script>alert(1)</script>\"'&"
    ranges = [{"start_s": 10.0, "end_s": 20.0, "title": bad}, {"start_s": 50.0, "end_s": 50.0}]
    answers = [{"query": bad, "text": bad, "finish": "stop", "token_ids": [], "ranges": ranges, "reason": bad}]
    for shown in (
        result(text=bad, ranges=ranges, notes=[bad], supported="experimental")._repr_html_(),
        result(ranges=ranges, answers=answers)._repr_html_(),
        result(text=bad)._repr_html_(),
    ):
        assert "<script" not in shown and "&lt;script&gt;" in shown and "\"'&" not in shown
    shown = result(ranges=ranges)._repr_html_()
    # 10 to 20 of 100 s of 640 pixels; a range of no length is still seen.
    assert 'x="64.0" y="2" width="64.00"' in shown and 'x="320.0" y="2" width="2.00"' in shown
    assert "<title>00:00:50.00-00:00:50.00</title>" in shown
    # A picture that is none would be shown as nothing.
    picture = ElementTree.fromstring(shown[shown.index("<svg") : shown.index("</svg>") + 6])
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 3
    assert "<svg" not in result(text="red")._repr_html_()


def test_results_of_servers_of_other_times_are_read() -> None:
    box = {"start_s": 1.0, "end_s": 1, "bbox": [0, 0.5, 1.0, 1]}
    new = {
        "task": "grounding",
        "supported": "experimental",
        "boxes": [box],
        "resolution_s": 0.5,
        "notes": ["n"],
        "answers": [{"query": "q", "text": "t", "token_ids": [1], "finish": "length", "ranges": [], "boxes": [box]}],
        "cached": True,
        "never heard of": {"x": 1},
    }
    read = result(**new)
    assert read.boxes[0].bbox == (0.0, 0.5, 1.0, 1.0) and read.answers[0].boxes == read.boxes
    assert (read.supported, read.notes, read.resolution_s) == ("experimental", ("n",), 0.5)
    assert [result(cached=cached).cached for cached in (True, False, "memory", "disk")] == [True, False, "memory", "disk"]
    with pytest.raises(errors.ProtocolError, match="Result.cached is 1, not str or bool"):
        result(cached=1)
    old = result()
    assert old.supported is None and old.answers == () and old.resolution_s is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        old.text = "x"  # type: ignore[misc]
    unknown = events.event_of({"kind": "later", "job": "j", "seq": 3, "at_ms": 1, "x": 1})
    assert isinstance(unknown, Other) and unknown.fields["x"] == 1 and not unknown.is_terminal


def test_highlights_and_boxes_have_the_forms_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = [{"start_s": 61.0, "end_s": 62.5, "title": "a cut"}, {"start_s": 70.0, "end_s": 71.0}]
    answer = result(ranges=ranges, boxes=[{"start_s": 1.0, "end_s": 2.0, "bbox": [0.25, 0.5, 0.75, 1.0]}])
    asked: list[tuple[str, str, float]] = []
    monkeypatch.setattr(compat.VidiClient, "_answer", lambda _, path, *task: asked.append(task) or answer)
    client = compat.VidiClient()
    assert client.extract_highlights("x.mp4") == [
        {"start": "00:01:01.00", "end": "00:01:02.50", "title": "a cut"},
        {"start": "00:01:10.00", "end": "00:01:11.00", "title": ""},
    ]
    assert client.ground_objects("x.mp4", "a cup", timeout=9) == [
        {"start": "00:00:01.00", "end": "00:00:02.00", "bbox": [0.25, 0.5, 0.5, 0.5]}
    ]
    assert asked == [("highlights", "", 300), ("grounding", "a cup", 9)]


def test_a_message_that_is_none_says_which_field() -> None:
    for data, says in [
        ({"text": 1, "finish": "stop", "plan": {}, "model": {}}, "Result.text"),
        ({"text": "", "finish": "stop", "plan": {"content_id": "x"}, "model": {"name": ""}}, "duration_s"),
        ([], "not a map"),
    ]:
        with pytest.raises(ProtocolError, match=says):
            decode(results.Result, data)


def test_the_resolution_is_that_of_the_digits_that_were_written() -> None:
    # The cases of deploy/src/export/clock.rs.
    assert results.resolution_s("0.08-0.33, 0.50-0.58", 12.0215) == 0.120215
    assert results.resolution_s("", 50.0) == 0.5 and results.resolution_s("none", 500.0) == 0.5
    assert results.resolution_s("0.1-0.123", 10.0) == 1.0


def test_errors_have_a_class_by_kind_and_survive_pickling() -> None:
    problem = {"kind": "media_not_found", "message": "m", "hint": "h", "status": 404, "stage": "decode", "details": {"n": 1}}
    error = from_problem(problem, job="j")
    assert isinstance(error, MediaNotFoundError) and isinstance(error, FileNotFoundError) and isinstance(error, RuntimeError)
    assert str(error) == "media_not_found: m (h)"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and vars(again) == vars(error) and again.job == "j" and again.details == {"n": 1}
    late = from_problem({"kind": "deadline"})
    assert isinstance(late, DeadlineError) and isinstance(late, TimeoutError)
    assert type(from_problem({"kind": "later"})) is VidiError and from_problem({}).kind == "internal"
    assert all(issubclass(cls, VidiError) for cls in errors._KINDS.values())


def test_no_address_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(VidiError, match="no address"):
        connect("ftp://x")


def read_in(pieces: list[bytes]) -> list[sse.Message]:
    async def chunks():  # type: ignore[no-untyped-def]
        for piece in pieces:
            yield piece

    async def read() -> list[sse.Message]:
        return [message async for message in sse.messages(chunks())]

    return asyncio.run(read())


def test_server_sent_events_are_the_same_wherever_the_bytes_are_cut() -> None:
    stream = (
        ":\n\nid: 0\ndata: {\"a\": \"\u2028é\"}\n\n\r\nevent: error\r\ndata:x\r\ndata:  y\r\n\r\n: c\r\rdata: cr\r\rdata: unfinished\n"
    ).encode()
    expected = [sse.Message("message", '{"a": "\u2028é"}'), sse.Message("error", "x\n y"), sse.Message("message", "cr")]
    assert read_in([stream]) == expected
    assert read_in([stream[at : at + 1] for at in range(len(stream))]) == expected
    for at in range(len(stream)):
        assert read_in([stream[:at], stream[at:]]) == expected, at


@pytest.mark.parametrize(
    ("told", "rate"),
    [("25/1", Fraction(25)), ("30000/1001", Fraction(30000, 1001)), ("2997/100", Fraction(30000, 1001)), ("0/0", None), ("", None)],
)
def test_frame_rates_are_fractions(told: str, rate: Fraction | None) -> None:
    assert clips._rate(told) == rate


def test_an_event_that_ends_a_job_says_so() -> None:
    plain = {"text": "", "finish": "stop", "plan": {"content_id": "x", "duration_s": 1.0}, "model": {"name": "m"}}
    done = events.event_of({"kind": "result", "job": "j", "seq": 1, "at_ms": 2, **plain})
    assert isinstance(done, Done) and done.is_terminal
    by_deadline = events.event_of({"kind": "cancelled", "job": "j", "seq": 1, "at_ms": 2, "by": "deadline"})
    assert isinstance(by_deadline, events.Cancelled) and isinstance(events.error_of_cancelled(by_deadline), DeadlineError)
