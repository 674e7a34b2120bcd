"""What happens to a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .decode import decode
from .errors import VidiError, from_problem
from .results import MediaPlan, Result, result_of


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    job: str
    #: Number of the event, from 0 without gaps.
    seq: int
    #: Unix time, milliseconds.
    at_ms: int

    @property
    def is_terminal(self) -> bool:
        """Whether it ends the job."""
        return isinstance(self, (Done, Failed, Cancelled))


@dataclass(frozen=True)
class Accepted(Event):
    pass


@dataclass(frozen=True)
class Queued(Event):
    #: Jobs before it.
    rank: int


@dataclass(frozen=True)
class Planned(Event):
    plan: MediaPlan
    mode: str
    #: Where the video was known already: ``memory`` or ``disk``; false where it is looked at for this job.
    cached: str | bool
    #: Image and audio tokens that pass the language model's layers together at most; none where the video was known.
    pass_rows: int | None = None


@dataclass(frozen=True)
class Progress(Event):
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Text(Event):
    """Piece of an answer as it is written."""

    delta: str
    #: Bytes of this answer before it: a piece may come again.
    at: int
    #: Number of the question that is answered, from 0; none in a job with one.
    question: int | None = None


@dataclass(frozen=True)
class Done(Event):
    result: Result


@dataclass(frozen=True)
class Failed(Event):
    error: VidiError


@dataclass(frozen=True)
class Cancelled(Event):
    #: ``client``, ``operator`` or ``deadline``.
    by: str
    #: Stages that dropped work.
    stages_stopped: tuple[str, ...] = ()
    #: Milliseconds that stopping took.
    ms: int = 0


@dataclass(frozen=True)
class Other(Event):
    """Event of a kind that this client does not know."""

    kind: str
    fields: Mapping[str, Any]


_KINDS: dict[str, type[Event]] = {
    "accepted": Accepted,
    "queued": Queued,
    "planned": Planned,
    "progress": Progress,
    "text": Text,
    "cancelled": Cancelled,
}


def event_of(data: Mapping[str, Any]) -> Event:
    """The event that a JobEvent describes. Raises ``ProtocolError``."""
    kind = data.get("kind")
    head = decode(Event, data)
    known = (head.job, head.seq, head.at_ms)
    if kind == "result":
        return Done(*known, result_of(data))
    if kind == "failed":
        error = data.get("error")
        return Failed(*known, from_problem(error if isinstance(error, Mapping) else {}, job=head.job))
    cls = _KINDS.get(str(kind))
    return decode(cls, data) if cls else Other(*known, str(kind), dict(data))


def error_of_cancelled(event: Cancelled) -> VidiError:
    """The error of who waits for a job that was cancelled."""
    kind = "deadline" if event.by == "deadline" else "cancelled"
    said = "its deadline passed" if kind == "deadline" else f"by a{'n' if event.by == 'operator' else ''} {event.by}"
    hint = "ask with a later deadline_s, a shorter span or a lower fps" if kind == "deadline" else ""
    return from_problem({"kind": kind, "message": f"job cancelled: {said}", "hint": hint}, job=event.job)
