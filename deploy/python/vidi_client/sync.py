"""The client for code without an event loop: scripts, notebooks, threads of a web service.

It is the asynchronous client, run by an event loop in a thread of its own; so it works where another event loop runs already, as in
notebooks and FastAPI. Its methods are made of those of `vidi_client.Client` and `vidi_client.Job`, with their arguments and types.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from .client import Client as AsyncClient
from .client import connect as _connect
from .errors import VidiError
from .events import Event
from .job import Job as AsyncJob

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

P = ParamSpec("P")
R = TypeVar("R")


class Portal:
    """Event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vidi-client", daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _stop, self._loop, self._thread, self._pid)

    def run(self, work: Callable[[], Awaitable[R]]) -> R:
        """Runs a coroutine to its end, from any thread but the loop's own; an interrupt cancels it."""
        if self._pid != os.getpid():
            raise VidiError("a client does not survive a fork", hint="make one in the child process")
        if not self.close.alive:
            raise VidiError("the client is closed", hint="make another one")

        async def working() -> R:
            return await work()

        future = asyncio.run_coroutine_threadsafe(working(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise VidiError("the client was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    if pid != os.getpid():
        return

    async def drain() -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await loop.shutdown_asyncgens()

    if threading.current_thread() is thread:
        loop.stop()
        return
    try:
        asyncio.run_coroutine_threadsafe(drain(), loop).result(5)
    except concurrent.futures.TimeoutError:
        pass
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    if not thread.is_alive():
        loop.close()


def _of_client(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Client, P], R]:
    @wraps(method)
    def twin(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.run(lambda: method(self._client, *args, **kwargs))

    return twin


def _job_of(method: Callable[Concatenate[AsyncClient, P], AsyncJob]) -> Callable[Concatenate[Client, P], Job]:
    @wraps(method)
    def twin(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        async def begun() -> AsyncJob:
            return method(self._client, *args, **kwargs)

        return Job(self._portal, self._portal.run(begun))

    return twin


def _of_job(method: Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Job, P], R]:
    @wraps(method)
    def twin(self: Job, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.run(lambda: method(self._job, *args, **kwargs))

    return twin


class Client:
    """Asks one server, from any thread. Close it, or use it as ``with connect(url) as client``."""

    def __init__(self, client: Callable[[], AsyncClient]) -> None:
        self._portal = Portal()

        async def made() -> AsyncClient:
            return client()

        try:
            self._client = self._portal.run(made)
        except BaseException:
            self._portal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections, and ends the thread."""
        if self._portal.close.alive:
            self._portal.run(self._client.aclose)
            self._portal.close()

    retrieve = _job_of(AsyncClient.retrieve)
    ask = _job_of(AsyncClient.ask)
    highlights = _job_of(AsyncClient.highlights)
    chapters = _job_of(AsyncClient.chapters)
    ground = _job_of(AsyncClient.ground)
    submit = _job_of(AsyncClient.submit)
    job = _job_of(AsyncClient.job)
    upload = _of_client(AsyncClient.upload)
    health = _of_client(AsyncClient.health)
    models = _of_client(AsyncClient.models)
    tasks = _of_client(AsyncClient.tasks)
    load = _of_client(AsyncClient.load)
    unload = _of_client(AsyncClient.unload)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


class Job:
    """Handle of a job: ``result()`` waits for its answer, iterating gives its events, each time from the first one on."""

    def __init__(self, portal: Portal, job: AsyncJob) -> None:
        self._portal, self._job = portal, job

    @property
    def id(self) -> str:
        """Id of the job."""
        return self._job.id

    @property
    def last(self) -> Event | None:
        """The newest event that was read."""
        return self._job.last

    def __repr__(self) -> str:
        return repr(self._job)

    def _repr_html_(self) -> str:
        return self._job._repr_html_()

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def events(self, *, after: int | None = None) -> Iterator[Event]:
        """Events behind a number, or all, up to the last one; a connection that is cut is made again."""
        events = self._job.events(after=after)
        try:
            while (event := self._portal.run(lambda: _next(events))) is not None:
                yield event
        finally:
            if self._portal.close.alive:
                self._portal.run(events.aclose)

    def submitted(self) -> Self:
        """Waits until the server has the job."""
        self._portal.run(self._job.submitted)
        return self

    result = _of_job(AsyncJob.result)
    state = _of_job(AsyncJob.state)
    cancel = _of_job(AsyncJob.cancel)
    export = _of_job(AsyncJob.export)


def _twin_of_connect(method: Callable[P, AsyncClient]) -> Callable[P, Client]:
    @wraps(method)
    def twin(*args: P.args, **kwargs: P.kwargs) -> Client:
        return Client(lambda: method(*args, **kwargs))

    return twin


connect = _twin_of_connect(_connect)
