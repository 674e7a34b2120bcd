"""Handle of a job, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing
from html import escape
from typing import TYPE_CHECKING, Any

from .errors import DeadlineError, JobCancelledError, VidiError
from .events import Cancelled, Done, Event, Failed, error_of_cancelled, event_of
from .results import JobState, Result
from .transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Self


class Job:
    """Handle of a job: await it for its result, iterate over it for its events, each time from the first one on.

    A handle that submits begins at once, in the event loop that runs.
    """

    def __init__(
        self,
        transport: Transport,
        id: str,
        prepare: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        send: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        #: Id of the job.
        self.id = id
        #: The newest event that was read.
        self.last: Event | None = None
        self._transport = transport
        self._is_sent = prepare is None
        self._submitting: asyncio.Task[None] | None = None
        if prepare is not None and send is not None:
            self._submitting = asyncio.get_running_loop().create_task(self._begin(prepare, send))

    async def _begin(
        self, prepare: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        request = await prepare()
        self._is_sent = True
        try:
            await send(request)
        except VidiError as error:
            error.job = self.id
            raise

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events()

    def __repr__(self) -> str:
        last = type(self.last).__name__.lower() if self.last else "not read yet"
        return f"<Job {self.id}: {last}>"

    def _repr_html_(self) -> str:
        if isinstance(self.last, Done):
            return self.last.result._repr_html_()
        return f"<p>{escape(repr(self))}</p>"

    async def submitted(self) -> Self:
        """Waits until the server has the job."""
        if self._submitting is not None:
            # Who gives up waiting does not stop the submission.
            await asyncio.wait([self._submitting])
            if self._submitting.cancelled():
                raise JobCancelledError("job cancelled before it was submitted", kind="cancelled", job=self.id)
            self._submitting.result()
        return self

    async def events(self, *, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Events behind a number, or all, up to the last one; a connection that is cut is made again."""
        await self.submitted()
        async with aclosing(self._transport.events(self.id, after)) as events:
            async for data in events:
                event = event_of(data)
                if self.last is None or event.seq >= self.last.seq:
                    self.last = event
                yield event

    async def result(self, timeout: float | None = None) -> Result:
        """The answer. Raises the job's error, and ``DeadlineError`` after ``timeout`` seconds.

        The job goes on then for whoever reads on; where nobody does, the gateway cancels it after http.resume_s, unless it was submitted
        with ``detach``.
        """
        try:
            return await asyncio.wait_for(self._result(), timeout)
        except asyncio.TimeoutError as error:
            if isinstance(error, VidiError):
                raise
            text = f"no answer to job {self.id} within {timeout:g} s"
            raise DeadlineError(text, kind="deadline", hint="wait on, or cancel it", job=self.id) from None

    async def _result(self) -> Result:
        if self.last is None or not self.last.is_terminal:
            after = self.last.seq if self.last else None
            async with aclosing(self.events(after=after)) as events:
                async for _ in events:
                    pass
        match self.last:
            case Done(result=result):
                return result
            case Failed(error=error):
                raise error
            case Cancelled() as event:
                raise error_of_cancelled(event)
        # Its events were read to the end by another connection.
        state = await self.state()
        if state.result is not None:
            return state.result
        raise state.error or VidiError(f"job {self.id} is {state.state}", job=self.id)

    async def state(self) -> JobState:
        """The job as its last event shows it."""
        await self.submitted()
        return await self._transport.look(self.id)

    async def cancel(self) -> JobState:
        """Cancels the job, and says how it ended; one that has ended stays as it is."""
        if self._submitting is not None and not self._is_sent:
            self._submitting.cancel()
            await asyncio.wait([self._submitting])
            return JobState(self.id, "cancelled")
        await self.submitted()
        return await self._transport.cancel(self.id)

    async def export(self, format: str, /, **options: str | bool) -> bytes:
        """The ranges as a file: ``otio``, ``edl``, ``vtt`` and so on; see deploy/README.md, "Files of an answer"."""
        await self.submitted()
        return await self._transport.export(self.id, format, options)
