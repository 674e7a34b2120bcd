"""Drop-in for services that had a `VidiClient` class of their own, with its names and its forms of answers.

What differs: the server has loaded its model, so there is nothing to load here. Every error is a ``RuntimeError`` with the kind and hint
of the pipeline's; a missing video is a ``FileNotFoundError`` as well, an answer that does not come in time a ``TimeoutError`` as well.
"""

from __future__ import annotations

import math
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Union, overload

from . import clips
from .clock import format_hundredths, parse_range, parse_seconds
from .errors import BadRequestError, DeadlineError, MediaNotFoundError, UnavailableError, VidiError
from .results import Range, Result
from .sync import Client, connect

#: Where a container finds the gateway of its host.
BASE_URL = "http://host.docker.internal:8099"
#: A server that was there is taken to be there for so long, seconds. One that was not is asked again each time.
YES_HOLDS_S = 2.0


class TimestampRange(tuple[float, float]):
    """Time range: ``(start, end)`` in seconds as a tuple, ``["start"]`` and ``["end"]`` as ``HH:MM:SS.ff``."""

    __slots__ = ()

    def __new__(cls, start: float, end: float) -> TimestampRange:
        return super().__new__(cls, (float(start), float(end)))

    def __getnewargs__(self) -> tuple[float, float]:
        return (self[0], self[1])

    @overload  # type: ignore[override]
    def __getitem__(self, key: str) -> str: ...
    @overload
    def __getitem__(self, key: int) -> float: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[float, ...]: ...
    def __getitem__(self, key: str | int | slice) -> str | float | tuple[float, ...]:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in ("start", "end"):
            raise KeyError(key)
        return format_hundredths(super().__getitem__(0 if key == "start" else 1))

    def keys(self) -> tuple[str, str]:
        """Names of what ``["..."]`` has, so that ``dict(range)`` is a dictionary."""
        return ("start", "end")

    def get(self, key: str, default: Any = None) -> Any:
        """``["start"]`` or ``["end"]``, or a default."""
        return self[key] if key in self.keys() else default

    @property
    def start(self) -> float:
        """Seconds."""
        return self[0]

    @property
    def end(self) -> float:
        """Seconds."""
        return self[1]


#: What `extract_clips` takes for a range: seconds or texts, as a tuple, a dictionary, a range of a result or ``START-END``.
Timestamp = Union[TimestampRange, Range, "tuple[float | str, float | str]", Mapping[str, Any], str]


class VidiClient:
    """Asks the gateway at ``base_url``. ``use_9b``, ``load_4bit`` and ``load_8bit`` are accepted: the server decides on its weights.

    Videos are uploaded, once each, unless the gateway is on this host; ``upload=False`` names them by their paths (see http.path_map).
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        use_9b: bool = True,
        load_4bit: bool | None = None,
        load_8bit: bool | None = None,
        *,
        token: str | None = None,
        upload: bool | None = None,
    ) -> None:
        given = [name for name, is_given in [("use_9b", not use_9b), ("load_4bit", load_4bit), ("load_8bit", load_8bit)] if is_given]
        if given:
            text = f"{', '.join(given)}: not done here, the server decides (llm.weights of `vidi up`)"
            warnings.warn(text, UserWarning, stacklevel=2)
        self.base_url = base_url
        self.use_9b, self.load_4bit, self.load_8bit = use_9b, load_4bit, load_8bit
        self._token, self._upload = token, upload
        self._lock = threading.Lock()
        self._made: tuple[int, Client] | None = None
        self._available_until = 0.0
        self._model_path = ""

    @property
    def _client(self) -> Client:
        """The client of this process: none survives a fork, as of a server that loads before it forks."""
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), connect(self.base_url, token=self._token))
            return self._made[1]

    def close(self) -> None:
        """Closes the connections; the next question makes them again."""
        with self._lock:
            if self._made is not None and self._made[0] == os.getpid():
                self._made[1].close()
            self._made = None

    @property
    def model_path(self) -> str:
        """Name of the model that the server answers with; empty while nobody says."""
        if not self._model_path:
            try:
                self._model_path = next((model.id for model in self._client.models()), "")
            except VidiError:
                pass
        return self._model_path

    @property
    def model_version(self) -> str:
        """Version of the model family that the server runs."""
        return "1.5-9B"

    def is_available(self) -> bool:
        """Whether a question would be answered: every stage is ready, or was unloaded and comes back with the next question."""
        try:
            self._check()
        except VidiError:
            return False
        return True

    def _check(self) -> None:
        if time.monotonic() < self._available_until:
            return
        health = self._client.health()
        away = [f"{name} is {stage.state}" for name, stage in health.stages.items() if stage.state not in ("ready", "unloaded")]
        if away:
            text = f"Vidi at {self.base_url} is not available: {', '.join(away)}"
            raise UnavailableError(text, kind="unavailable", hint="ask again once it has loaded")
        self._available_until = time.monotonic() + YES_HOLDS_S

    def _answer(self, video_path: str | os.PathLike[str], task: str, query: str, timeout: float) -> Result:
        until = time.monotonic() + timeout
        if not os.path.exists(video_path):
            raise MediaNotFoundError(f"Video not found: {os.fspath(video_path)}", kind="media_not_found")
        try:
            self._check()
            options: dict[str, Any] = {} if self._upload is None else {"upload": self._upload}
            job = self._client.submit(video_path, query, task=task, deadline_s=float(timeout), **options)
            try:
                return job.result(max(until - time.monotonic(), 0.0))
            except (DeadlineError, KeyboardInterrupt):
                with contextlib.suppress(VidiError):
                    job.cancel()
                raise
        except UnavailableError:
            self._available_until = 0.0
            raise

    def ask_vqa(
        self,
        video_path: str | os.PathLike[str],
        question: str | None = None,
        timeout: float = 120,
        *,
        query: str | None = None,
    ) -> str:
        """The answer to a question about a video; ``query`` is another name of ``question``."""
        asked = question if question is not None else query
        if not asked:
            raise BadRequestError("no question", kind="bad_request", hint="give question or query")
        return self._answer(video_path, "qa", asked, timeout).text

    def find_timestamps(self, video_path: str | os.PathLike[str], query: str, timeout: float = 180) -> list[TimestampRange]:
        """When something is seen or heard, in the order of time."""
        ranges = self._answer(video_path, "retrieval", query, timeout).ranges
        return sorted(TimestampRange(one.start_s, one.end_s) for one in ranges)

    def find_timestamps_dicts(
        self, video_path: str | os.PathLike[str], query: str, timeout: float = 180
    ) -> list[dict[str, str]]:
        """The same as dictionaries with ``start`` and ``end``, ``HH:MM:SS.ff``, for pydantic's ``List[dict]``."""
        ranges = self.find_timestamps(video_path, query, timeout)
        return [{"start": format_hundredths(one.start), "end": format_hundredths(one.end)} for one in ranges]

    def extract_highlights(self, video_path: str | os.PathLike[str], timeout: float = 300) -> list[dict[str, str]]:
        """Moments worth a look, as dictionaries with ``start``, ``end`` and ``title``."""
        ranges = self._answer(video_path, "highlights", "", timeout).ranges
        return [
            {"start": format_hundredths(one.start_s), "end": format_hundredths(one.end_s), "title": one.title or ""}
            for one in ranges
        ]

    def ground_objects(self, video_path: str | os.PathLike[str], query: str, timeout: float = 300) -> list[dict[str, Any]]:
        """Where in the picture something is: dictionaries with ``start``, ``end`` and ``bbox``.

        That is [x, y, width, height], as shares of the picture's width and height.
        """
        boxes = self._answer(video_path, "grounding", query, timeout).boxes
        return [
            {"start": format_hundredths(one.start_s), "end": format_hundredths(one.end_s), "bbox": _sized(one.bbox)}
            for one in boxes
        ]

    def extract_clips(
        self,
        video_path: str | os.PathLike[str],
        timestamps: Iterable[Timestamp],
        output_dir: str | os.PathLike[str],
        *,
        copy: bool = False,
    ) -> list[str]:
        """Cuts the ranges out of a video on this host, exact to the frame; with ``copy`` at key frames, which is fast."""
        try:
            ranges = [range_of(timestamp) for timestamp in timestamps]
        except ValueError as error:
            raise BadRequestError(str(error), kind="bad_request") from None
        return clips.cut_clips(video_path, ranges, output_dir, copy=copy)


def range_of(timestamp: Timestamp) -> tuple[float, float]:
    """Start and end of a range in any of the forms that `extract_clips` takes, seconds. Raises ``ValueError``."""
    if isinstance(timestamp, Range):
        return timestamp.start_s, timestamp.end_s
    if isinstance(timestamp, str):
        return parse_range(timestamp)
    if isinstance(timestamp, Mapping):
        if "start" not in timestamp or "end" not in timestamp:
            raise ValueError(f"{dict(timestamp)!r} is no time range: give start and end")
        return parse_seconds(timestamp["start"]), parse_seconds(timestamp["end"])
    values = tuple(timestamp)
    if len(values) != 2:
        raise ValueError(f"{values!r} is no time range: give start and end")
    return parse_seconds(values[0]), parse_seconds(values[1])


def _sized(bbox: tuple[float, float, float, float]) -> list[float]:
    left, top, right, bottom = bbox
    return [left, top, right - left, bottom - top]


_lock = threading.Lock()
_shared: VidiClient | None = None


def get_client(**options: Any) -> VidiClient:
    """The one client of this process; the first call's arguments make it."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = VidiClient(**options)
        elif options:
            warnings.warn("get_client has a client already: the arguments change nothing", UserWarning, stacklevel=2)
        return _shared
