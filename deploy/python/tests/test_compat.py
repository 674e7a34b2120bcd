"""The drop-in class, used as the service that it is for uses it."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest
from conftest import Pipeline, agreement
from proxy import Proxy

from vidi_client import compat
from vidi_client.compat import VidiClient


@pytest.fixture(scope="module")
def client(pipeline: Pipeline):  # type: ignore[no-untyped-def]
    client = VidiClient(base_url=pipeline.url, use_9b=True, load_4bit=None, load_8bit=None)
    yield client
    client.close()


def test_questions_have_true_answers_in_the_forms_of_before(client: VidiClient, pipeline: Pipeline) -> None:
    assert client.is_available() is True and client.model_path == "demo-model" and client.model_version == "1.5-9B"
    video = pipeline.video
    path, what, when = str(video.path), video.question("qa"), video.question("retrieval")
    assert client.ask_vqa(path, what.query) == what.text == client.ask_vqa(path, query=what.query, timeout=60)
    found = client.find_timestamps(path, when.query)
    assert agreement([(start, end) for start, end in found], when.ranges or []) >= 0.5
    for (start, end), texts in zip(found, client.find_timestamps_dicts(path, when.query), strict=True):
        hours, minutes, seconds = texts["start"].split(":")
        assert float(seconds) == pytest.approx(start, abs=0.006) and (hours, minutes) == ("00", "00")
        assert type(texts) is dict and set(texts) == {"start", "end"} and end > start
    assert found[0]["start"] == client.find_timestamps_dicts(path, when.query)[0]["start"]


def test_dictionaries_are_those_of_pydantic(client: VidiClient, pipeline: Pipeline) -> None:
    video = pipeline.video
    found = client.find_timestamps_dicts(str(video.path), video.question("retrieval").query)
    assert pydantic.TypeAdapter(list[dict]).validate_python(found, strict=True) == found and found


def test_a_process_that_was_forked_asks_too(client: VidiClient) -> None:
    assert client.is_available()
    client._available_until = 0.0
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if client.is_available() else 1))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and client.is_available()


def test_the_ranges_are_cut_out(client: VidiClient, pipeline: Pipeline, tmp_path: Path) -> None:
    video = pipeline.video
    found = client.find_timestamps(str(video.path), video.question("retrieval").query)
    files = client.extract_clips(str(video.path), found, str(tmp_path / "clips"))
    assert len(files) == len(found) and all(Path(file).stat().st_size > 0 for file in files)
    with pytest.raises(RuntimeError, match="no time range"):
        client.extract_clips(str(video.path), [{"start": "x"}], str(tmp_path))


def test_a_video_that_is_not_there_and_a_server_that_is_away_are_told_as_before(
    client: VidiClient, pipeline: Pipeline, nobody: str
) -> None:
    for asked in (client.ask_vqa, client.find_timestamps, client.ground_objects):
        with pytest.raises(FileNotFoundError):
            asked(str(pipeline.media / "nowhere.mp4"), "x")
    with pytest.raises(RuntimeError, match="no question"):
        client.ask_vqa(str(pipeline.video.path))
    away = VidiClient(base_url=nobody)
    began = time.monotonic()
    assert away.is_available() is False and away.model_path == ""
    with pytest.raises(RuntimeError, match="unavailable"):
        away.ask_vqa(str(pipeline.video.path), "x")
    assert time.monotonic() - began < 10
    away.close()


def test_a_yes_is_kept_for_seconds_and_a_no_never(
    proxied: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]
    proxy = proxied(cut=lambda *_: 0 if away[0] else None)
    client = VidiClient(base_url=proxy.url)
    assert not client.is_available() and not client.is_available() and len(proxy.heads) == 2
    away[0] = False
    assert client.is_available() and client.is_available() and len(proxy.heads) == 3
    monkeypatch.setattr(compat, "YES_HOLDS_S", 0.0)
    client._available_until = 0.0
    assert client.is_available() and client.is_available() and len(proxy.heads) >= 3
    away[0] = True
    time.sleep(0.01)
    assert not client.is_available()
    client.close()


def test_an_answer_that_takes_too_long_is_given_up_and_its_job_too(client: VidiClient, pipeline: Pipeline) -> None:
    with pytest.raises(TimeoutError) as told:
        client._answer(pipeline.video.path, "qa", "x" * 200, 0.01)
    assert isinstance(told.value, RuntimeError)
    state = client._client.job(told.value.job).state()  # type: ignore[attr-defined]
    assert state.state == "cancelled"


def test_a_video_outside_of_the_media_roots_is_uploaded_on_request(pipeline: Pipeline, tmp_path: Path) -> None:
    video = pipeline.video
    shutil.copy(video.path, tmp_path / "x.mp4")
    question = video.question("qa")
    client = VidiClient(base_url=pipeline.url, upload=True)
    assert client.ask_vqa(str(tmp_path / "x.mp4"), question.query) == question.text
    client.close()


def test_flags_for_loading_are_taken_and_change_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="use_9b, load_4bit"):
        VidiClient(pipeline.url, use_9b=False, load_4bit=True).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VidiClient(pipeline.url, True, None, None).close()
    monkeypatch.setattr(compat, "_shared", None)
    shared = compat.get_client(base_url=pipeline.url)
    assert compat.get_client() is shared and shared.is_available()
    with pytest.warns(UserWarning, match="a client already"):
        compat.get_client(use_9b=False)
    shared.close()


def test_highlights_and_boxes_are_asked_for(client: VidiClient, pipeline: Pipeline) -> None:
    if "highlights" not in {task.name for task in client._client.tasks()}:
        pytest.skip("this server offers no highlights")
    # What there is to find depends on the weights, so only that they answer: test_units.py has the forms.
    path = str(pipeline.video.path)
    assert isinstance(client.extract_highlights(path), list)
    assert isinstance(client.ground_objects(path, pipeline.video.question("retrieval").query), list)
