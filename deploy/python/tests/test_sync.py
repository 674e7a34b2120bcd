"""The synchronous twin, also where another event loop runs."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
from conftest import Pipeline

import vidi_client
from vidi_client import Done, sync

SHORT = 24


def loops() -> set[threading.Thread]:
    """Threads of clients."""
    return {thread for thread in threading.enumerate() if thread.name == "vidi-client"}


def test_it_answers_like_the_asynchronous_one(pipeline: Pipeline) -> None:
    video = pipeline.video
    question = video.question("retrieval")
    with sync.connect(pipeline.url) as client:
        assert client.health().is_ready and client.models()[0].id == "demo-model"
        job = client.retrieve(video.path, question.query, max_new_tokens=SHORT)
        assert question.is_true_of(job.result(60))
        events = list(job)
        assert [event.seq for event in events] == list(range(len(events))) and isinstance(events[-1], Done)
        assert list(job.events(after=events[-2].seq)) == events[-1:] and job.last == events[-1]
        # Who has seen enough leaves.
        for event in job:
            break
        assert event.seq == 0 and "<svg" in job._repr_html_() and job.id in repr(job)
        assert job.state().result == job.result() == client.job(job.id).result()
        assert job.cancel().state == "done"
        job = client.ask(video.path, "x", fps=10)
        with pytest.raises(vidi_client.DeadlineError):
            job.result(timeout=0.01)
        assert job.cancel().state == "cancelled"
        with pytest.raises(FileNotFoundError):
            client.ask(pipeline.media / "nowhere.mp4", "x").result()


def test_it_works_inside_of_a_running_event_loop_and_from_many_threads(pipeline: Pipeline) -> None:
    video = pipeline.video
    question = video.question("qa")

    async def notebook() -> None:
        with sync.connect(pipeline.url) as client:
            assert question.is_true_of(client.ask(video.path, question.query, max_new_tokens=SHORT).result())

            def ask() -> bool:
                return question.is_true_of(client.ask(video.path, question.query, max_new_tokens=SHORT).result())

            assert all(await asyncio.gather(*[asyncio.to_thread(ask) for _ in range(4)]))

    before = loops()
    asyncio.run(notebook())
    assert loops() == before


def test_one_that_was_closed_says_so_and_one_that_was_forgotten_leaves_no_thread(pipeline: Pipeline) -> None:
    before = loops()
    client = sync.connect(pipeline.url)
    job = client.job("x")
    client.close()
    client.close()
    with pytest.raises(vidi_client.VidiError, match="closed"):
        job.result()
    client = sync.connect(pipeline.url)
    assert len(loops() - before) == 1
    del client, job
    assert loops() == before


def test_it_has_what_the_asynchronous_one_has() -> None:
    for twin, one in [(sync.Client, vidi_client.Client), (sync.Job, vidi_client.Job)]:
        names = {name for name in vars(one) if not name.startswith("_")} - {"aclose"}
        assert names <= set(dir(twin))
        for name in names:
            theirs, ours = inspect.signature(getattr(one, name)), inspect.signature(getattr(twin, name))
            assert list(theirs.parameters) == list(ours.parameters), name
            assert getattr(twin, name).__doc__, name
