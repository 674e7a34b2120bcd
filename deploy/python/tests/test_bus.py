"""The client on the bus itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Pipeline

import vidi_client
from vidi_client import Done, Planned, connect, sync

pytestmark = pytest.mark.anyio
SHORT = 24


async def test_an_answer_is_true_and_its_events_are_numbered(pipeline: Pipeline) -> None:
    video = pipeline.video
    question = video.question("retrieval")
    async with connect(pipeline.nats) as client:
        health = await client.health()
        assert health.is_ready and set(health.stages) == {"decode", "vision", "audio", "fuse", "llm"}
        assert [model.id for model in await client.models()] == ["demo-model"]
        job = client.retrieve(video.path, question.query, max_new_tokens=SHORT)
        events = [event async for event in job]
        assert [event.seq for event in events] == list(range(len(events))) and isinstance(events[-1], Done)
        assert question.is_true_of(await job) and (await job.state()).result == await job
        assert [event async for event in job.events(after=1)] == events[2:]
        # The same job over HTTP, and one of there here.
        async with connect(pipeline.url) as other:
            assert await other.job(job.id) == await job
            theirs = other.retrieve(video.path, question.query, max_new_tokens=SHORT)
            assert await client.job((await theirs.submitted()).id) == await theirs


async def test_a_job_is_cancelled_and_errors_are_those_of_the_pipeline(pipeline: Pipeline) -> None:
    async with connect(pipeline.nats) as client:
        job = client.ask(pipeline.video.path, "x", fps=10)
        async for event in job:
            if isinstance(event, Planned):
                break
        assert (await job.cancel()).state == "cancelled" and (await job.cancel()).state == "cancelled"
        with pytest.raises(vidi_client.JobCancelledError):
            await job
        with pytest.raises(vidi_client.MediaNotFoundError):
            await client.ask(pipeline.media / "nowhere.mp4", "x")
        with pytest.raises(vidi_client.NotFoundError):
            await client.job("never").state()
        with pytest.raises(vidi_client.VidiError, match="upload"):
            await client.upload(pipeline.video.path)


def test_the_twin_speaks_to_the_bus_too(pipeline: Pipeline) -> None:
    question = pipeline.video.question("qa")
    with sync.connect(pipeline.nats) as client:
        assert question.is_true_of(client.ask(pipeline.video.path, question.query, max_new_tokens=SHORT).result())


async def test_a_broker_that_refuses_the_credentials_is_told(tmp_path: Path, nobody: str) -> None:
    port = nobody.rpartition(":")[2]
    server = os.environ.get("VIDI_NATS_SERVER") or "nats-server"
    broker = subprocess.Popen([server, "-p", port, "--user", "client", "--pass", "right"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        async with connect(f"nats://127.0.0.1:{port}", nats_options={"user": "client", "password": "wrong"}) as client:
            for _ in range(100):
                try:
                    await client.health()
                except vidi_client.UnavailableError:
                    # It has only just been started.
                    await asyncio.sleep(0.05)
                except vidi_client.UnauthorizedError as error:
                    assert error.kind == "unauthorized" and "right" not in str(error)
                    return
            pytest.fail("not refused")
    finally:
        broker.terminate()
        broker.wait(10)


async def test_a_broker_that_is_away_is_told(nobody: str) -> None:
    began = time.monotonic()
    async with connect(nobody.replace("http", "nats")) as client:
        with pytest.raises(vidi_client.UnavailableError, match="broker"):
            await client.ask("/x.mp4", "x")
    assert time.monotonic() - began < 15
