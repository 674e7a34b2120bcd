"""What a client needs of the way to a server: HTTP and the bus each are one."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from .errors import UnavailableError
from .results import File, Health, JobState, Model


class Transport(Protocol):
    """Way to a server."""

    @property
    def is_local(self) -> bool:
        """Whether the server sees this host's files under the same paths."""

    async def submit(self, request: Mapping[str, Any]) -> None:
        """Submits a job. It has a job id of the client's, so that once more does no harm."""

    def events(self, job: str, after: int | None) -> AsyncGenerator[Mapping[str, Any], None]:
        """Events behind a number until the last one, across connections that are cut."""

    async def cancel(self, job: str) -> JobState:
        """Cancels a job, and says how it ended."""

    async def look(self, job: str) -> JobState:
        """The state of a job."""

    async def health(self) -> Health:
        """Which stages are there."""

    async def models(self) -> tuple[Model, ...]:
        """The models that answer."""

    async def upload(self, path: str) -> File:
        """Uploads a file, unless the server has its bytes."""

    async def export(self, job: str, format: str, options: Mapping[str, Any]) -> bytes:
        """A job's ranges as a file."""

    async def load(self, verb: str, stage: str | None) -> Mapping[str, Any]:
        """Starts (``load``) or ends (``unload``) the stages' processes."""

    async def aclose(self) -> None:
        """Closes the connections."""


def new_job() -> str:
    """A job id that nobody else has."""
    return f"py-{secrets.token_hex(16)}"


def is_terminal(event: Mapping[str, Any]) -> bool:
    """Whether an event, as it travels, ends its job."""
    return event.get("kind") in ("result", "failed", "cancelled")


def cut_off(job: str, patience_s: float, where: str) -> UnavailableError:
    """The error of who reads events and hears nothing any more."""
    return UnavailableError(
        f"{where} has not answered for {patience_s:g} s while the events of job {job} were read",
        kind="unavailable",
        hint="the job may go on: take it up again with client.job(ID)",
        job=job,
    )
