"""The client, for asyncio. `vidi_client.sync` is the same for code without an event loop."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict
from urllib.parse import urlsplit

from .errors import BadRequestError, NotFoundError
from .http import Http
from .job import Job
from .results import File, Health, Model, Task
from .transport import Transport, new_job

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

#: Address of `vidi up --http` and `vidi gateway` where none is configured.
DEFAULT_URL = "http://127.0.0.1:8099"

#: A video: a path, as the server sees it or to be uploaded, or a file that was uploaded.
Video: TypeAlias = "str | os.PathLike[str] | File"


class Options(TypedDict, total=False):
    """What a job may be given besides its question; see JobRequest in PROTOCOL.md."""

    span: tuple[float, float]
    fps: float
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    deadline_s: float
    priority: int
    parser: str
    pad_s: float
    join_s: float
    #: Id of the job; the same id with the same question is the same job. One is made where none is given.
    job: str
    #: Whether the job goes on though nobody reads its events any more.
    detach: bool
    #: Whether the video is uploaded, or named by its path. By default a server on this host is given the path.
    upload: bool


def connect(
    url: str = DEFAULT_URL,
    *,
    token: str | None = None,
    reconnect_s: float = 60.0,
    verify: bool | ssl.SSLContext = True,
    prefix: str = "vidi.v1",
    nats_options: Mapping[str, Any] | None = None,
) -> Client:
    """A client of the gateway at ``http(s)://HOST:PORT``, or of the broker at ``nats://HOST:PORT`` (extra ``nats``).

    Nothing is sent yet. ``token`` is the gateway's; ``verify`` is httpx's. ``reconnect_s`` seconds without a word from the server end the
    reading of a job's events. ``prefix`` is bus.prefix, and ``nats_options`` go to nats-py (``user``, ``password``, ``tls`` and so on).
    """
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return Client(Http(url, token=token, reconnect_s=reconnect_s, verify=verify))
    if scheme in ("nats", "tls"):
        from .bus import Bus

        return Client(Bus(url, prefix=prefix, reconnect_s=reconnect_s, options=nats_options or {}))
    raise BadRequestError(f"{url!r} is no address", kind="bad_request", hint="give http://HOST:PORT or nats://HOST:PORT")


class Client:
    """Asks one server. Use it in one event loop, and close it: ``async with connect(url) as client``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections. Jobs whose events were read go on only if they were submitted with ``detach``."""
        await self._transport.aclose()

    def retrieve(self, video: Video, query: str | Sequence[str], **options: Unpack[Options]) -> Job:
        """Asks when something happens; several queries share the work on the video and have their ``answers``."""
        return self._submit(video, "retrieval", query, options)

    def ask(self, video: Video, question: str | Sequence[str], **options: Unpack[Options]) -> Job:
        """Asks what happens; several questions share the work on the video and have their ``answers``."""
        return self._submit(video, "qa", question, options)

    def highlights(
        self, video: Video, queries: Sequence[str] = (), **options: Unpack[Options]
    ) -> Job:
        """Asks for moments worth a look, each with a title; ``queries`` say what to look for."""
        return self._submit(video, "highlights", list(queries), options)

    def chapters(self, video: Video, **options: Unpack[Options]) -> Job:
        """Asks for the parts of the video, each with a title."""
        return self._submit(video, "chapters", "", options)

    def ground(self, video: Video, query: str, **options: Unpack[Options]) -> Job:
        """Asks where in the picture something is: ``boxes`` beside times."""
        return self._submit(video, "grounding", query, options)

    def submit(
        self, video: Video, query: str | Sequence[str] = "", *, task: str, **options: Unpack[Options]
    ) -> Job:
        """Asks for any task that the server has."""
        return self._submit(video, task, query, options)

    def _submit(
        self, video: Video, task: str, query: str | Sequence[str], options: Options
    ) -> Job:
        given: dict[str, Any] = dict(options)
        upload: bool | None = given.pop("upload", None)
        given.setdefault("job", new_job())
        given["task"] = task
        if isinstance(query, str):
            given["query"] = query
        elif query:
            given["queries"] = list(query)

        async def prepare() -> dict[str, Any]:
            return {**given, **await self._named(video, upload)}

        async def send(request: dict[str, Any]) -> None:
            try:
                await self._transport.submit(request)
            except NotFoundError:
                if isinstance(video, File) or "file_id" not in request:
                    raise
                # It made way for others after it was found there.
                await self._transport.submit({**given, **await self._named(video, upload)})

        return Job(self._transport, given["job"], prepare, send)

    async def _named(self, video: Video, upload: bool | None) -> dict[str, Any]:
        """The fields of a request that name the video."""
        if isinstance(video, File):
            return {"file_id": video.id}
        path = os.fspath(video)
        if upload if upload is not None else not self._transport.is_local:
            return {"file_id": (await self.upload(path)).id}
        return {"video": path if path.startswith("file:") else os.path.abspath(path)}

    def job(self, id: str) -> Job:
        """Handle of a job that was submitted before, or elsewhere."""
        return Job(self._transport, id)

    async def upload(self, video: str | os.PathLike[str]) -> File:
        """Uploads a video, unless the server has its bytes."""
        return await self._transport.upload(os.fspath(video))

    async def health(self) -> Health:
        """The state of each stage, and whether a question would be answered now."""
        return await self._transport.health()

    async def models(self) -> tuple[Model, ...]:
        """The models that answer, and their tasks where the server says them."""
        return await self._transport.models()

    async def tasks(self) -> tuple[Task, ...]:
        """What can be asked, where the server says it."""
        return tuple(task for model in await self.models() for task in model.tasks)

    async def load(self, stage: str | None = None) -> Mapping[str, Any]:
        """Starts the processes of a stage, or of all that compute, and waits until they are ready."""
        return await self._transport.load("load", stage)

    async def unload(self, stage: str | None = None) -> Mapping[str, Any]:
        """Ends the processes of a stage, or of all that compute, once jobs in flight are answered; the bytes freed."""
        return await self._transport.load("unload", stage)
