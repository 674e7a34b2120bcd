"""Client of Vidi, which answers when and what happens in videos.

    from vidi_client import connect

    async with connect("http://127.0.0.1:8099") as client:
        result = await client.retrieve("kitchen.mp4", "a man slicing onions")

`vidi_client.sync` has the same for code without an event loop, `vidi_client.compat` a drop-in for an older client class.
"""

from .client import DEFAULT_URL, Client, Options, connect
from .clips import cut_clips
from .errors import (
    BadRequestError,
    BusyError,
    ClipError,
    ConflictError,
    DeadlineError,
    DoesNotFitError,
    ForbiddenError,
    JobCancelledError,
    MediaNotFoundError,
    NotFoundError,
    ProtocolError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedMediaError,
    VidiError,
)
from .events import Accepted, Cancelled, Done, Event, Failed, Other, Planned, Progress, Queued, Text
from .job import Job
from .results import Answer, Box, File, Health, JobState, MediaPlan, Model, Range, Result, Task

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_URL",
    "Accepted",
    "Answer",
    "BadRequestError",
    "Box",
    "BusyError",
    "Cancelled",
    "Client",
    "ClipError",
    "ConflictError",
    "DeadlineError",
    "DoesNotFitError",
    "Done",
    "Event",
    "Failed",
    "File",
    "ForbiddenError",
    "Health",
    "Job",
    "JobCancelledError",
    "JobState",
    "MediaNotFoundError",
    "MediaPlan",
    "Model",
    "NotFoundError",
    "Options",
    "Other",
    "Planned",
    "Progress",
    "ProtocolError",
    "Queued",
    "Range",
    "Result",
    "Task",
    "Text",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedMediaError",
    "VidiError",
    "connect",
    "cut_clips",
]
