"""Errors, one class for each kind that a program treats in its own way.

All are a ``VidiError`` and so a ``RuntimeError``, with the ``kind``, ``hint`` and figures that the pipeline gave (problem+json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class VidiError(RuntimeError):
    """Request that was refused, or job that has no answer."""

    def __init__(
        self,
        message: str,
        *,
        kind: str = "internal",
        hint: str = "",
        stage: str | None = None,
        status: int | None = None,
        details: Mapping[str, Any] | None = None,
        job: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        #: Name of its kind, as PROTOCOL.md and the gateway list them.
        self.kind = kind
        #: What to do about it; empty where nobody knows.
        self.hint = hint
        #: Stage where it happened.
        self.stage = stage
        #: HTTP status of the response that said so.
        self.status = status
        #: Figures.
        self.details: Mapping[str, Any] = dict(details or {})
        #: Job that it is about.
        self.job = job
        #: Seconds after which to come again, where the server said so.
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.kind}: {self.message}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_again, (type(self), self.message, dict(self.__dict__)))


def _again(cls: type[VidiError], message: str, state: dict[str, Any]) -> VidiError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class BadRequestError(VidiError):
    """The request itself is wrong."""


class UnauthorizedError(VidiError):
    """No token, or a wrong one."""


class ForbiddenError(VidiError):
    """The file is outside the media roots, or the request comes from where none may."""


class NotFoundError(VidiError):
    """No such job, file or path on the server."""


class MediaNotFoundError(VidiError, FileNotFoundError):
    """No such video, as the one who was to read it sees the file system."""


class UnsupportedMediaError(VidiError):
    """Not a video or sound that can be decoded, or too short."""


class DoesNotFitError(VidiError):
    """The job needs more memory, or the file more space, than there is for it; ``details`` have the figures."""


class BusyError(VidiError):
    """Too much is in flight: come again after ``retry_after_s``."""


class ConflictError(VidiError):
    """It contradicts what is there already."""


class JobCancelledError(VidiError):
    """Somebody cancelled the job."""


class DeadlineError(VidiError, TimeoutError):
    """The job's deadline passed, or the time that a caller had for its answer."""


class UnavailableError(VidiError):
    """Nobody answers, or the pipeline cannot do now what was asked."""


class ProtocolError(VidiError):
    """What came is no message of this protocol."""


class ClipError(VidiError):
    """A clip that could not be cut; the message names it."""


_KINDS: dict[str, type[VidiError]] = {
    "bad_request": BadRequestError,
    "unauthorized": UnauthorizedError,
    "forbidden_path": ForbiddenError,
    "forbidden_origin": ForbiddenError,
    "not_found": NotFoundError,
    "method_not_allowed": NotFoundError,
    "media_not_found": MediaNotFoundError,
    "unsupported_media": UnsupportedMediaError,
    "too_short": UnsupportedMediaError,
    "does_not_fit": DoesNotFitError,
    "too_large": DoesNotFitError,
    "spool_full": DoesNotFitError,
    "busy": BusyError,
    "conflict": ConflictError,
    "cancelled": JobCancelledError,
    "deadline": DeadlineError,
    "slow_client": UnavailableError,
    "unavailable": UnavailableError,
    "fetch_failed": UnavailableError,
}


def from_problem(
    problem: Mapping[str, Any], *, job: str | None = None, status: int | None = None, retry_after_s: float | None = None
) -> VidiError:
    """The error that a problem+json body, or the ``error`` of a failed job, describes."""
    kind = str(problem.get("kind") or "internal")
    message = str(problem.get("message") or problem.get("detail") or problem.get("title") or "no message")
    said = problem.get("status")
    details = problem.get("details")
    return _KINDS.get(kind, VidiError)(
        message,
        kind=kind,
        hint=str(problem.get("hint") or ""),
        stage=problem.get("stage"),
        status=said if isinstance(said, int) else status,
        details=details if isinstance(details, Mapping) else None,
        job=job,
        retry_after_s=retry_after_s,
    )
