"""What a job answers, and what a server says of itself: frozen, with times in seconds from the start of the video."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import clock, timeline
from .decode import decode
from .errors import VidiError


@dataclass(frozen=True)
class Range:
    """Time range of an answer."""

    start_s: float
    end_s: float
    title: str | None = None

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def __str__(self) -> str:
        return f"{clock.format_hundredths(self.start_s)}-{clock.format_hundredths(self.end_s)}"


@dataclass(frozen=True)
class Box:
    """Box in the picture at a time, or for a range of times."""

    start_s: float
    end_s: float
    #: Left, top, right and bottom, as shares of width and height.
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """Answer to one of several questions."""

    query: str
    text: str
    finish: str
    token_ids: tuple[int, ...] = ()
    ranges: tuple[Range, ...] = ()
    boxes: tuple[Box, ...] = ()
    #: Why there are no ranges or boxes, where some were looked for.
    reason: str | None = None
    #: What Vidi 7B's reference prints for the ranges, to the letter.
    reference_text: str | None = None
    resolution_s: float | None = None


@dataclass(frozen=True)
class ImagePlan:
    frame_step: int
    frames: int
    grid: tuple[int, int]
    tokens: int
    replaced: tuple[int, ...] = ()


@dataclass(frozen=True)
class AudioPlan:
    samples: int
    windows: int
    mel_frames: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class MediaPlan:
    """What of the video was looked at and listened to."""

    content_id: str
    #: Seconds of what was watched.
    duration_s: float
    image: ImagePlan | None = None
    audio: AudioPlan | None = None
    #: Sentences about tracks that are not read, and what was planned otherwise than asked.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageTiming:
    busy_s: float
    wait_s: float
    first_at_ms: int
    last_at_ms: int


@dataclass(frozen=True)
class Timings:
    stages: Mapping[str, StageTiming] = field(default_factory=dict)
    #: From submission to the first token, seconds.
    first_token_s: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(frozen=True)
class StageMemory:
    peak_bytes: int
    #: 0 without a budget.
    budget_bytes: int


@dataclass(frozen=True)
class ModelName:
    name: str
    dtype: str = ""
    weights: str = ""
    kv: str = ""


@dataclass(frozen=True)
class Result:
    """Answer of a job."""

    text: str
    #: ``stop``, or ``length`` where the answer was cut off.
    finish: str
    plan: MediaPlan
    model: ModelName
    token_ids: tuple[int, ...] = ()
    ranges: tuple[Range, ...] = ()
    boxes: tuple[Box, ...] = ()
    #: Where the video was known from an earlier question: ``memory`` or ``disk``, ``True`` of servers of before 2026-11-27;
    #: ``False`` where it was not.
    cached: str | bool = False
    timings: Timings = Timings()
    memory: Mapping[str, StageMemory] = field(default_factory=dict)
    task: str = ""
    #: ``trained``, ``composite`` or ``experimental``; none where the server does not say.
    supported: str | None = None
    #: Parser that read ranges and boxes.
    parser: str = ""
    #: Seconds that the last written digit of a time stands for: nothing finer is known.
    resolution_s: float | None = None
    #: Why there are no ranges or boxes, where some were looked for.
    reason: str | None = None
    #: What Vidi 7B's reference prints for the ranges, to the letter.
    reference_text: str | None = None
    #: Seconds that were added to both ends of each range.
    pad_s: float = 0.0
    #: Seconds that two ranges could be apart and were made one.
    join_s: float = 0.0
    #: Sentences on what was left out.
    notes: tuple[str, ...] = ()
    #: Of several questions, in order.
    answers: tuple[Answer, ...] = ()

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return timeline.html_of(self)


def result_of(data: Mapping[str, Any]) -> Result:
    """The result in an event's fields, or in a job's state."""
    result = decode(Result, data)
    if result.resolution_s is None and result.ranges:
        result = replace(result, resolution_s=resolution_s(result.text, result.plan.duration_s))
    return result


def resolution_s(text: str, watched_s: float) -> float:
    """Seconds that the last written digit of an answer's fractions stands for, for servers that do not say.

    That is the watched time divided by 10 to the fewest decimals in the answer; where none are written, by as many as the model was
    taught: 2 below 100 s, 3 below 1000 s, 4 from there.
    """
    taught = 2 if watched_s < 100 else 3 if watched_s < 1000 else 4
    written = [len(digits) for digits in re.findall(r"(?<=\d)\.(\d+)", text, re.ASCII)]
    return round(watched_s / float(10 ** min(min(written, default=taught), 12)), 6)


@dataclass(frozen=True)
class JobState:
    """A job as its last event shows it."""

    job: str
    #: ``submitted``, ``accepted``, ``queued``, ``running``, ``done``, ``failed``, ``cancelled`` or ``cancelling``.
    state: str
    result: Result | None = None
    error: VidiError | None = None
    #: Stages that dropped work, where it was cancelled.
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageState:
    #: ``ready``, ``loading``, ``unloaded`` or ``missing``.
    state: str
    #: Unix time since when, milliseconds.
    since_ms: int | None = None


@dataclass(frozen=True)
class Health:
    #: Whether a question would be answered now without loading a model.
    is_ready: bool
    stages: Mapping[str, StageState]


@dataclass(frozen=True)
class Task:
    name: str
    about: str = ""
    #: ``trained``, ``composite`` or ``experimental``; none where the server does not say.
    supported: str | None = None
    #: Parser of its answers; empty where the server does not say.
    parser: str = ""
    #: ``required``, or ``none`` where it takes no query.
    query: str = ""
    #: Whether it takes several.
    queries: bool = False


@dataclass(frozen=True)
class Model:
    id: str
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class File:
    """Uploaded file."""

    id: str
    bytes: int
    filename: str = ""
    created_at: int = 0
