"""The asynchronous client against the pipeline, over HTTP."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TOKEN, Pipeline
from proxy import Proxy

import vidi_client
from vidi_client import Cancelled, Done, Planned, Text, connect
from vidi_client.transport import new_job

pytestmark = pytest.mark.anyio
#: Answers of the demo model are shorter than this.
SHORT = 24


async def test_an_answer_is_true_and_its_events_are_numbered(pipeline: Pipeline) -> None:
    video = pipeline.video
    when, what = video.question("retrieval"), video.question("qa")
    async with connect(pipeline.url) as client:
        assert (await client.health()).is_ready
        assert [model.id for model in await client.models()] == ["demo-model"]
        assert {"retrieval", "qa"} <= {task.name for task in await client.tasks()}
        job = client.retrieve(video.path, when.query, max_new_tokens=SHORT)
        events = [event async for event in job]
        assert [event.seq for event in events] == list(range(len(events)))
        assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
        assert any(isinstance(event, Planned) for event in events) and isinstance(events[-1], Done)
        result = await job
        assert when.is_true_of(result), result
        assert result == events[-1].result and result.resolution_s and "<svg" in job._repr_html_()
        assert "".join(event.delta for event in events if isinstance(event, Text)).strip() == result.text
        # They can be read again, and by another handle.
        assert [event async for event in client.job(job.id).events(after=1)] == events[2:]
        assert [event async for event in job.events(after=events[-1].seq)] == []
        assert await client.job(job.id) == result == (await job.state()).result
        assert (await job.export("csv")).decode().startswith("start_s,")
        # Two questions at once, about a video that is known.
        jobs = [client.ask(video.path, what.query, max_new_tokens=SHORT), client.retrieve(video.path, when.query)]
        answer, again = await asyncio.gather(*jobs)
        assert what.is_true_of(answer) and when.is_true_of(again)


async def test_the_same_id_is_the_same_job_and_another_question_under_it_is_refused(pipeline: Pipeline) -> None:
    video = pipeline.video
    query, same = video.question("qa").query, new_job()
    async with connect(pipeline.url) as client:
        first = await client.ask(video.path, query, job=same, max_new_tokens=SHORT)
        assert await client.ask(video.path, query, job=same, max_new_tokens=SHORT) == first
        with pytest.raises(vidi_client.ConflictError) as told:
            await client.ask(video.path, "something else", job=same)
        assert (told.value.kind, told.value.status, told.value.job) == ("conflict", 409, same) and told.value.hint


async def test_a_stream_that_is_cut_goes_on_where_it_was(pipeline: Pipeline, proxied: Callable[..., Proxy]) -> None:
    video = pipeline.video
    question = video.question("retrieval")
    # The head of a response has some 150 bytes, an event some 100.
    proxy = proxied(cut=lambda number, head: 400 if b"/events" in head and number < 5 else None)
    async with connect(proxy.url) as client:
        job = client.retrieve(video.path, question.query, max_new_tokens=SHORT)
        events = [event async for event in job]
    assert [event.seq for event in events] == list(range(len(events))) and isinstance(events[-1], Done)
    assert question.is_true_of(await job)
    reads = [head.lower() for head in proxy.heads if b"/events" in head]
    assert len(reads) >= 3 and b"last-event-id" not in reads[0] and all(b"last-event-id" in head for head in reads[1:]), reads


async def test_a_submission_whose_answer_is_lost_is_sent_again_and_is_one_job(
    pipeline: Pipeline, proxied: Callable[..., Proxy]
) -> None:
    video = pipeline.video
    question = video.question("qa")
    proxy = proxied(cut=lambda number, head: 0 if number == 1 else None)
    async with connect(proxy.url) as client:
        job = client.ask(video.path, question.query, max_new_tokens=SHORT)
        events = [event async for event in job]
    posts = [head for head in proxy.heads if head.startswith(b"POST /v1/jobs")]
    assert len(posts) == 2 and job.id.encode() in b"".join(proxy.heads)
    assert [type(event).__name__ for event in events].count("Accepted") == 1 and question.is_true_of(await job)


async def test_a_server_that_is_away_is_told_and_is_not_waited_for(
    pipeline: Pipeline, proxied: Callable[..., Proxy], nobody: str
) -> None:
    began = time.monotonic()
    async with connect(nobody) as client:
        with pytest.raises(vidi_client.UnavailableError, match=nobody) as told:
            await client.ask(pipeline.video.path, "x")
        with pytest.raises(vidi_client.UnavailableError):
            await client.health()
    assert told.value.hint and time.monotonic() - began < 10
    # One that goes away while events are read.
    proxy = proxied(cut=lambda number, head: 200 if b"/events" in head else None)
    async with connect(proxy.url, reconnect_s=0.5) as client:
        job = await client.ask(pipeline.video.path, "x", max_new_tokens=SHORT, detach=True).submitted()
        proxy.close()
        with pytest.raises(vidi_client.UnavailableError):
            await job
    async with connect(pipeline.url) as client:
        await client.job(job.id)


async def test_a_job_is_cancelled_while_it_runs(pipeline: Pipeline) -> None:
    async with connect(pipeline.url) as client:
        job = client.ask(pipeline.video.path, "x", fps=10)
        async for event in job:
            if isinstance(event, Planned):
                break
        state = await job.cancel()
        assert state.state == "cancelled" and (await job.cancel()).state == "cancelled"
        with pytest.raises(vidi_client.JobCancelledError) as told:
            await job
        assert told.value.job == job.id and isinstance(job.last, Cancelled) and job.last.by == "client"


async def test_time_that_is_over_is_told(pipeline: Pipeline) -> None:
    async with connect(pipeline.url) as client:
        job = client.ask(pipeline.video.path, pipeline.video.question("qa").query, max_new_tokens=SHORT)
        with pytest.raises(vidi_client.DeadlineError) as told:
            await job.result(timeout=0.001)
        assert isinstance(told.value, TimeoutError) and job.id in str(told.value)
        # It goes on.
        assert (await job).text
        with pytest.raises(vidi_client.DeadlineError):
            await client.ask(pipeline.video.path, "x", fps=10, deadline_s=0.05)


async def test_what_cannot_be_asked_says_why_and_what_to_do(pipeline: Pipeline, tmp_path: Path) -> None:
    broken = pipeline.media / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    nowhere = pipeline.media / "nowhere.mp4"
    async with connect(pipeline.url) as client:
        for job, error, kind in [
            (client.ask(nowhere, "x"), vidi_client.MediaNotFoundError, "media_not_found"),
            (client.ask(nowhere, "x", upload=True), FileNotFoundError, "media_not_found"),
            (client.ask("/etc/hostname", "x"), vidi_client.ForbiddenError, "forbidden_path"),
            (client.ask(broken, "x"), vidi_client.UnsupportedMediaError, "unsupported_media"),
            (client.ask(nowhere, "x", fps=-1), vidi_client.BadRequestError, "bad_request"),
            (client.submit(pipeline.video.path, "x", task="poetry"), vidi_client.BadRequestError, "bad_request"),
            (client.job("never"), vidi_client.NotFoundError, "not_found"),
        ]:
            with pytest.raises(error) as told:
                await job
            assert isinstance(told.value, vidi_client.VidiError) and told.value.kind == kind, told.value
        with pytest.raises(vidi_client.NotFoundError):
            await client.job("never").cancel()


async def test_a_video_that_the_server_does_not_see_is_uploaded_once(
    pipeline: Pipeline, proxied: Callable[..., Proxy], tmp_path: Path
) -> None:
    video = pipeline.video
    elsewhere = tmp_path / "else where.mp4"
    # A box that says nothing, and that no other file has.
    elsewhere.write_bytes(video.path.read_bytes() + struct.pack(">I4s16s", 24, b"free", os.urandom(16)))
    question = video.question("qa")
    proxy = proxied()
    async with connect(proxy.url) as client:
        assert question.is_true_of(await client.ask(elsewhere, question.query, upload=True, max_new_tokens=SHORT))
        assert proxy.sent > elsewhere.stat().st_size
        before = proxy.sent
        file = await client.upload(elsewhere)
        assert file.bytes == elsewhere.stat().st_size and file.filename == elsewhere.name
        assert (await client.ask(file, question.query, max_new_tokens=SHORT)).cached
    async with connect(proxy.url) as client:
        assert (await client.upload(elsewhere)).id == file.id
    assert proxy.sent - before < 10_000


async def test_an_upload_that_is_cancelled_asks_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(64 << 20)
    async with connect(pipeline.url) as client:
        job = client.ask(large, "x", upload=True)
        await asyncio.sleep(0)
        assert (await job.cancel()).state == "cancelled"
        with pytest.raises(vidi_client.JobCancelledError):
            await job
        with pytest.raises(vidi_client.NotFoundError):
            await client.job(job.id)


async def test_only_the_token_is_answered(guarded: str, pipeline: Pipeline) -> None:
    for token in (None, "wrong"):
        async with connect(guarded, token=token) as client:
            assert (await client.health()).is_ready
            for asked in (client.models, client.job("x").state, client.ask(pipeline.video.path, "x").result):
                with pytest.raises(vidi_client.UnauthorizedError) as told:
                    await asked()
                assert told.value.status == 401 and "Bearer" in told.value.hint
    question = pipeline.video.question("qa")
    async with connect(guarded, token=TOKEN) as client:
        assert question.is_true_of(await client.ask(pipeline.video.path, question.query, max_new_tokens=SHORT))


async def test_several_questions_have_their_answers(pipeline: Pipeline) -> None:
    video = pipeline.video
    questions = video.questions("retrieval")[:3]
    async with connect(pipeline.url) as client:
        if "highlights" not in {task.name for task in await client.tasks()}:
            pytest.skip("this server offers no highlights, and no several questions in a job")
        job = client.retrieve(video.path, [q.query for q in questions], max_new_tokens=3 * SHORT)
        result = await job
        assert [answer.query for answer in result.answers] == [q.query for q in questions]
        assert all(q.is_true_of(answer) for q, answer in zip(questions, result.answers, strict=True))
        assert {event.question async for event in job if isinstance(event, Text)} == {0, 1, 2}
        parts = await client.chapters(video.path)
        assert parts.ranges[0].start_s == 0 and parts.ranges[-1].end_s == parts.plan.duration_s
        assert parts.supported == "composite" and all(part.title for part in parts.ranges)
        # Of one query: what is near is joined, and what is over half of the video is left out.
        best = await client.highlights(video.path, [questions[0].query])
        assert best.supported == "composite" and best.ranges and all(one.title for one in best.ranges)
        placed = await client.ground(video.path, questions[0].query)
        assert placed.supported == "experimental" and (placed.boxes or placed.reason)
