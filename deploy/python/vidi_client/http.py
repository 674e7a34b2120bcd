"""The way over the HTTP gateway (`vidi up --http ADDRESS`)."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from . import sse
from .decode import decode
from .errors import MediaNotFoundError, NotFoundError, ProtocolError, UnavailableError, VidiError, from_problem
from .results import File, Health, JobState, Model, StageState, result_of
from .transport import cut_off, is_terminal

#: Time to connect, seconds.
CONNECT_S = 5.0
#: A response other than that of a load comes within this time, seconds.
ANSWER_S = 60.0
#: A stream of events without a byte for so long is cut: the gateway sends a comment every 10 s.
SILENT_S = 30.0
#: `load` and `unload` wait for the stages, up to http.load_s (600) and their drain, seconds.
LOAD_S = 1200.0
#: Pauses before a submission is sent again, seconds: its job id makes that harmless.
AGAIN_S = (0.25, 1.0)
#: Longest pause between two attempts to read on, seconds.
MOST_PAUSE_S = 2.0


class _NoMoreError(Exception):
    """The job has ended, and all of its events were read."""


class Http:
    """Connections to one gateway."""

    def __init__(self, url: str, *, token: str | None, reconnect_s: float, verify: bool | ssl.SSLContext) -> None:
        self._url = url.rstrip("/")
        self._reconnect_s = reconnect_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            verify=verify,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S, pool=None),
            # Each job whose events are read has a connection.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )
        #: SHA-256 of files by path, size and modification time.
        self._hashes: dict[tuple[str, int, int], str] = {}

    @property
    def is_local(self) -> bool:
        host = self._http.base_url.host
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise self._away(f"{method} {path}: no answer in time") from error
        except httpx.TransportError as error:
            raise self._away(str(error) or type(error).__name__) from error
        if response.is_success:
            return response
        raise problem_of(response)

    def _away(self, why: str) -> UnavailableError:
        hint = "is `vidi up --http ADDRESS` running there?"
        return UnavailableError(f"no answer from {self._url}: {why}", kind="unavailable", hint=hint)

    async def submit(self, request: Mapping[str, Any]) -> None:
        for pause_s in (*AGAIN_S, None):
            try:
                await self._ask("POST", "/v1/jobs", json=request)
                return
            except UnavailableError as error:
                # A gateway that says so itself has its reasons.
                if error.status is not None or pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def events(self, job: str, after: int | None) -> AsyncGenerator[Mapping[str, Any], None]:
        heard_at, pause_s, is_first = time.monotonic(), 0.05, True
        while True:
            try:
                async with aclosing(self._read(job, after)) as events:
                    async for event in events:
                        after, pause_s, is_first = event["seq"], 0.05, False
                        heard_at = time.monotonic()
                        yield event
                        heard_at = time.monotonic()
                        if is_terminal(event):
                            return
            except _NoMoreError:
                return
            except httpx.TransportError as error:
                if is_first and isinstance(error, httpx.ConnectError):
                    raise self._away(str(error)) from error
            except UnavailableError:
                if is_first:
                    raise
            if time.monotonic() - heard_at > self._reconnect_s:
                raise cut_off(job, self._reconnect_s, self._url)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)

    async def _read(self, job: str, after: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """Events of one connection."""
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S, pool=None)
        async with self._http.stream("GET", f"/v1/jobs/{job}/events", headers=headers, timeout=timeout) as response:
            if not response.is_success:
                await response.aread()
                raise problem_of(response, job)
            if response.status_code == 204:
                raise _NoMoreError
            async for message in sse.messages(response.aiter_bytes()):
                data = json_of(message.data)
                if message.event == "error":
                    raise from_problem(data, job=job)
                if isinstance(data.get("seq"), int) and (after is None or data["seq"] > after):
                    yield data

    async def cancel(self, job: str) -> JobState:
        return state_of(json_of((await self._ask("DELETE", f"/v1/jobs/{job}")).content))

    async def look(self, job: str) -> JobState:
        return state_of(json_of((await self._ask("GET", f"/v1/jobs/{job}")).content))

    async def health(self) -> Health:
        try:
            response = await self._http.get("/health", timeout=CONNECT_S)
        except httpx.TransportError as error:
            raise self._away(str(error) or type(error).__name__) from error
        body = json_of(response.content) if response.status_code in (200, 503) else None
        if body is None or "stages" not in body:
            raise problem_of(response)
        stages = {name: decode(StageState, stage) for name, stage in body["stages"].items()}
        return Health(is_ready=response.status_code == 200, stages=stages)

    async def models(self) -> tuple[Model, ...]:
        body = json_of((await self._ask("GET", "/v1/models")).content)
        return tuple(decode(Model, model) for model in body.get("data", []))

    async def upload(self, path: str) -> File:
        name = await asyncio.to_thread(self._hash, path)
        try:
            return decode(File, json_of((await self._ask("GET", f"/v1/files/file-{name}")).content))
        except NotFoundError:
            pass
        with open(path, "rb") as video:
            # The bytes name the file, so a part that was sent does no harm; nothing is sent twice all the same.
            timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S, pool=None)
            files = {"file": (os.path.basename(path), video, "application/octet-stream")}
            response = await self._ask("POST", "/v1/files", files=files, timeout=timeout)
        return decode(File, json_of(response.content))

    def _hash(self, path: str) -> str:
        """SHA-256 of a file, which is its name on the server."""
        try:
            stat = os.stat(path)
            key = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
            if key not in self._hashes:
                digest = hashlib.sha256()
                with open(path, "rb") as video:
                    while piece := video.read(1 << 20):
                        digest.update(piece)
                self._hashes[key] = digest.hexdigest()
            return self._hashes[key]
        except OSError as error:
            text = f"no video {path!r} to upload: {error.strerror or error}"
            raise MediaNotFoundError(text, kind="media_not_found", hint="a path of the server's needs upload=False") from error

    async def export(self, job: str, format: str, options: Mapping[str, Any]) -> bytes:
        given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        return (await self._ask("GET", f"/v1/jobs/{job}/export", params={"format": format, **given})).content

    async def load(self, verb: str, stage: str | None) -> Mapping[str, Any]:
        body = {"stage": stage} if stage else {}
        timeout = httpx.Timeout(LOAD_S, connect=CONNECT_S, pool=None)
        return json_of((await self._ask("POST", f"/v1/{verb}", json=body, timeout=timeout)).content)

    async def aclose(self) -> None:
        await self._http.aclose()


def json_of(body: str | bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"the answer is no JSON: {body!r:.80}", kind="protocol", hint="is this a Vidi gateway?") from error
    if not isinstance(data, dict):
        raise ProtocolError(f"the answer is no JSON object: {body!r:.80}", kind="protocol", hint="is this a Vidi gateway?")
    return data


def problem_of(response: httpx.Response, job: str | None = None) -> VidiError:
    """The error that a response is."""
    try:
        problem = json_of(response.content)
    except ProtocolError:
        problem = {}
    if "kind" not in problem:
        # Not the gateway's: a proxy's, say.
        kind = "unavailable" if response.status_code in (502, 503, 504) else "internal"
        problem = {"kind": kind, "message": f"{response.request.url} answers with status {response.status_code}"}
    after = response.headers.get("retry-after", "")
    retry_after_s = float(after) if after.isdigit() else None
    return from_problem(problem, job=job, status=response.status_code, retry_after_s=retry_after_s)


def state_of(body: Mapping[str, Any]) -> JobState:
    """A job's state as the gateway shows it."""
    job = str(body.get("job", ""))
    error, result = body.get("error"), body.get("result")
    if isinstance(result, Mapping) and "resolution_s" in body:
        result = {**result, "resolution_s": result.get("resolution_s", body["resolution_s"])}
    stopped = [stage.get("stage") for stage in body.get("stopped", []) if isinstance(stage, Mapping)]
    stopped = stopped or (body.get("cancelled") or {}).get("stages_stopped", [])
    return JobState(
        job=job,
        state=str(body.get("state", "")),
        result=result_of(result) if isinstance(result, Mapping) else None,
        error=from_problem(error, job=job) if isinstance(error, Mapping) else None,
        stopped=tuple(str(stage) for stage in stopped),
    )
