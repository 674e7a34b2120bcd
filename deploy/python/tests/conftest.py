"""A pipeline with the demo model for all tests: the one that the environment names, else one that is started here.

PIPELINE_URL is its gateway, PIPELINE_NATS its broker, PIPELINE_MEDIA a directory below its media root with the video 1.mp4 of
`vidi demo-video` and its truth, 1.json; PIPELINE_VIDI is the command `vidi`. `cargo test --workspace --test system python::` gives all four.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy

#: A pipeline has started within this time, seconds.
START_S = 120
#: Token of the gateway that asks for one.
TOKEN = "a token of tests"


@dataclass(frozen=True)
class Question:
    """Question about a video, and its true answer."""

    query: str
    ranges: list[tuple[float, float]] | None
    text: str | None

    def is_true_of(self, result: Any) -> bool:
        if self.text is not None:
            return result.text.strip() == self.text
        return agreement([(r.start_s, r.end_s) for r in result.ranges], self.ranges or []) >= 0.5


def agreement(said: list[tuple[float, float]], truth: list[tuple[float, float]]) -> float:
    """Time in both, divided by time in either, to the hundredth of a second."""
    ticks = [{t for start, end in ranges for t in range(round(start * 100), round(end * 100))} for ranges in (said, truth)]
    either = ticks[0] | ticks[1]
    return len(ticks[0] & ticks[1]) / len(either) if either else 1.0


@dataclass(frozen=True)
class Video:
    path: Path

    def questions(self, task: str) -> list[Question]:
        """Questions of a task whose answer is something."""
        truth = json.loads(self.path.with_suffix(".json").read_text())
        found = [
            Question(q["query"], [tuple(r) for r in q["ranges"]] if "ranges" in q else None, q.get("text"))
            for q in truth["questions"]
            if q["task"] == task
        ]
        return [q for q in found if q.ranges or q.text]


    def question(self, task: str) -> Question:
        """One that the demo model answers: of words, that for a colour, since it is not sure of every shape."""
        return next(q for q in self.questions(task) if q.text is None or "colour" in q.query)


@dataclass(frozen=True)
class Pipeline:
    url: str
    nats: str
    media: Path

    @property
    def video(self) -> Video:
        return Video(self.media / "1.mp4")


def vidi() -> str:
    """The command."""
    built = Path(__file__).parents[3] / "target/debug/vidi"
    found = os.environ.get("PIPELINE_VIDI") or (str(built) if built.is_file() else shutil.which("vidi"))
    if not found:
        pytest.fail("no vidi: set PIPELINE_VIDI, or build it (cargo build --workspace --bins)")
    return found


class Said:
    """A command that runs, and the beginnings of lines on its output that were waited for."""

    def __init__(self, args: list[str], state: Path) -> None:
        env = {**os.environ, "VIDI_STATE": str(state)}
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            [vidi(), *args], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def behind(self, beginning: str) -> str:
        """The rest of the next line with this beginning."""
        while True:
            try:
                line = self._lines.get(timeout=START_S)
            except queue.Empty:
                pytest.fail(f"no line {beginning!r} after {START_S} s: {self.log}")
            self.log.append(line)
            if line.startswith(beginning):
                return line.removeprefix(beginning)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    if url := os.environ.get("PIPELINE_URL"):
        yield Pipeline(url, os.environ["PIPELINE_NATS"], Path(os.environ["PIPELINE_MEDIA"]))
        return
    home = tmp_path_factory.mktemp("pipeline")
    media = home / "media"
    media.mkdir()
    up = Said(["up", "--model", "demo", "--http", "127.0.0.1:0", "--media-root", str(media)], home / "state")
    try:
        url = up.behind("gateway: ")
        made = [vidi(), "demo-video", str(media / "1.mp4"), "--seed", "1", "--seconds", "8"]
        subprocess.run(made, check=True, capture_output=True)
        broker = up.behind("ready: broker ").partition(",")[0]
        yield Pipeline(url, broker, media)
    finally:
        up.end()


@pytest.fixture(scope="session")
def guarded(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a gateway to the same pipeline that asks for TOKEN."""
    home = tmp_path_factory.mktemp("guarded")
    (home / "token").write_text(TOKEN)
    keys = {"bus.url": pipeline.nats, "http.token_file": home / "token", "http.spool": home / "spool"}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    gateway = Said([*settings, "gateway", "--http", "127.0.0.1:0"], home / "state")
    try:
        yield gateway.behind("gateway: ").partition(",")[0]
    finally:
        gateway.end()


@pytest.fixture
def proxied(pipeline: Pipeline) -> Iterator[Callable[..., Proxy]]:
    """Makes a proxy before the gateway."""
    made: list[Proxy] = []

    def make(**options: Any) -> Proxy:
        made.append(Proxy(pipeline.url, **options))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def nobody() -> str:
    """Address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"
