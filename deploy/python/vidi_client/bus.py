"""The way over the bus itself: NATS, by common/protocol/PROTOCOL.md. Needs the extra ``nats``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

from .decode import decode
from .errors import NotFoundError, ProtocolError, UnauthorizedError, UnavailableError, VidiError
from .events import Cancelled, Done, Failed, error_of_cancelled, event_of
from .results import File, Health, JobState, Model, StageState
from .transport import cut_off, is_terminal

try:
    import msgpack
    import nats
    import nats.errors
except ImportError as error:  # pragma: no cover
    raise ImportError("the bus needs nats-py and msgpack: pip install 'vidi-client[nats]'") from error

#: Subjects begin with this unless bus.prefix says otherwise.
PREFIX = "vidi.v1"
#: Time for one request, seconds.
REQUEST_S = 5.0
#: Without a reply for so long a broadcast counts as answered; the first one has longer.
QUIET_S, FIRST_S = 0.15, 1.0
#: Events are looked for at this interval though none was heard of, seconds.
LOOK_S = 1.0
#: A cancelled job ends within this time, seconds.
END_S = 5.0
#: A job has its first event within this time, where a stage-llm is there, seconds.
ADMITTED_S = 2.0
#: Every stage of a pipeline.
STAGES = ("decode", "vision", "audio", "fuse", "llm")


class Bus:
    """Connection to one broker, made by the first call."""

    def __init__(self, url: str, *, prefix: str, reconnect_s: float, options: Mapping[str, Any]) -> None:
        self._url, self._prefix, self._reconnect_s = url, prefix, reconnect_s
        # nats.conf lets clients have answers below this.
        self._options = {"inbox_prefix": b"_INBOX.client", "connect_timeout": REQUEST_S, **options}
        self._stream = "VIDI_EVENTS" if prefix == PREFIX else f"VIDI_EVENTS_{prefix.replace('.', '_')}"
        self._connecting = asyncio.Lock()
        self._nc: Any = None

    @property
    def is_local(self) -> bool:
        # Over the bus a video is always named by its path.
        return True

    async def _connection(self) -> Any:
        async with self._connecting:
            if self._nc is None:
                try:
                    self._nc = await self._connected()
                except Exception as error:
                    raise self._away(error) from error
            return self._nc

    async def _connected(self) -> Any:
        """A connection. The first one fails once each server has; later nats-py makes it again for as long as it takes."""
        nc, servers, errors = nats.NATS(), self._url.split(","), list[Exception]()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def note(error: Exception) -> None:
            if not failed.done():
                errors.append(error)
                if len(errors) >= len(servers):
                    failed.set_result(None)

        given = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.25, "error_cb": note, **self._options}
        connecting = asyncio.create_task(nc.connect(servers, **given))
        await asyncio.wait([connecting, failed], timeout=REQUEST_S, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            connecting.result()
            failed.cancel()
            return nc
        connecting.cancel()
        await asyncio.wait([connecting])
        await nc.close()
        raise errors[-1] if errors else asyncio.TimeoutError()

    def _away(self, error: Exception) -> VidiError:
        host = urlsplit(self._url).hostname or "the broker"
        if "authorization" in str(error).lower():
            hint = "give nats_options: user and password, or what else the broker asks for"
            return UnauthorizedError(f"the broker on {host} refuses the credentials: {error}", kind="unauthorized", hint=hint)
        return UnavailableError(
            f"no answer from the broker on {host}: {error or type(error).__name__}",
            kind="unavailable",
            hint="is `vidi up` running with this bus.url?",
        )

    async def _request(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        nc = await self._connection()
        try:
            reply = await nc.request(subject, body, timeout=REQUEST_S, headers=headers)
        except (nats.errors.Error, asyncio.TimeoutError) as error:
            raise self._away(error) from error
        return bytes(reply.data)

    async def _gather(self, subject: str, body: bytes) -> list[bytes]:
        """Replies to a broadcast."""
        nc = await self._connection()
        inbox = nc.new_inbox()
        heard = await nc.subscribe(inbox)
        replies: list[bytes] = []
        try:
            await nc.publish(subject, body, reply=inbox)
            while True:
                reply = await heard.next_msg(timeout=QUIET_S if replies else FIRST_S)
                if not (reply.headers or {}).get("Status"):
                    replies.append(bytes(reply.data))
                elif not replies:
                    return replies
        except (nats.errors.TimeoutError, asyncio.TimeoutError):
            return replies
        except nats.errors.Error as error:
            raise self._away(error) from error
        finally:
            await _left(heard)

    async def submit(self, request: Mapping[str, Any]) -> None:
        given = {name: value for name, value in request.items() if name != "detach"}
        if "file_id" in given:
            raise _only_http("asking about an uploaded file")
        # No message id: admission knows a request again by its job's events, and the broker would drop it as a duplicate
        # also where those are gone.
        headers = {"Vidi-Job": given["job"]}
        body = msgpack.packb(given, use_bin_type=True)
        ack = json.loads(await self._request(f"{self._prefix}.jobs", body, headers))
        if "error" in ack:
            text = f"the broker did not accept the job: {ack['error'].get('description', ack['error'])}"
            raise UnavailableError(text, kind="unavailable", hint="is a pipeline running there?", job=given["job"])

    async def _stored(self, query: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """A stored event, with its number on the stream."""
        reply = json.loads(await self._request(f"$JS.API.STREAM.MSG.GET.{self._stream}", json.dumps(query).encode()))
        if "error" in reply:
            if reply["error"].get("code") == 404:
                return None
            raise UnavailableError(f"reading events failed: {reply['error']}", kind="unavailable")
        message = reply["message"]
        return int(message["seq"]), unpacked(base64.b64decode(message.get("data", "")))

    async def events(self, job: str, after: int | None) -> AsyncGenerator[Mapping[str, Any], None]:
        nc = await self._connection()
        subject = f"{self._prefix}.events.{job}"
        heard = await nc.subscribe(subject, pending_msgs_limit=1024)
        at, heard_at = 1, time.monotonic()
        try:
            while True:
                try:
                    while found := await self._stored({"seq": at, "next_by_subj": subject}):
                        at, event = found[0] + 1, found[1]
                        heard_at = time.monotonic()
                        # An end counts whatever its number: who writes it behind lost events does not know how many were told.
                        if after is None or event["seq"] > after or is_terminal(event):
                            after = max(event["seq"], -1 if after is None else after)
                            yield event
                            heard_at = time.monotonic()
                        if is_terminal(event):
                            return
                    last = await self._stored({"last_by_subj": subject})
                    heard_at = time.monotonic()
                    if last is None or last[0] + 1 < at:
                        # Numbers begin anew on a stream that was lost and made again.
                        at = 1
                except UnavailableError as error:
                    if time.monotonic() - heard_at > self._reconnect_s:
                        raise cut_off(job, self._reconnect_s, "the broker") from error
                await _heard(heard)
        finally:
            await _left(heard)

    async def cancel(self, job: str) -> JobState:
        before = await self._admitted(job)
        if before.state in ("done", "failed", "cancelled"):
            return before
        body = msgpack.packb({"job": job}, use_bin_type=True)
        replies = [unpacked(reply) for reply in await self._gather(f"{self._prefix}.control.cancel", body)]
        if not replies:
            raise UnavailableError("cancel failed: no stage answers", kind="unavailable", hint="start a stage-llm", job=job)
        stopped = tuple(str(reply.get("stage")) for reply in replies if reply.get("stopped"))
        until = time.monotonic() + END_S
        state = await self.look(job)
        while state.state not in ("done", "failed", "cancelled") and time.monotonic() < until:
            await asyncio.sleep(0.05)
            state = await self.look(job)
        ended = state.state in ("done", "failed", "cancelled")
        return JobState(job, state.state if ended else "cancelling", state.result, state.error, stopped)

    async def _admitted(self, job: str) -> JobState:
        """The state of a job; one that was submitted just now has its first event soon."""
        until = time.monotonic() + ADMITTED_S
        while True:
            try:
                return await self.look(job)
            except NotFoundError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.05)

    async def look(self, job: str) -> JobState:
        last = await self._stored({"last_by_subj": f"{self._prefix}.events.{job}"})
        if last is None:
            text = f"no job {job}: it was not submitted, was not admitted yet, or its events are gone"
            raise NotFoundError(text, kind="not_found", hint="submit it again: the same id does no harm", job=job)
        event = event_of(last[1])
        if isinstance(event, Done):
            return JobState(job, "done", result=event.result)
        if isinstance(event, Failed):
            return JobState(job, "failed", error=event.error)
        if isinstance(event, Cancelled):
            return JobState(job, "cancelled", error=error_of_cancelled(event), stopped=event.stages_stopped)
        kind = str(last[1].get("kind"))
        return JobState(job, kind if kind in ("accepted", "queued") else "running")

    async def _instances(self) -> list[Mapping[str, str]]:
        """What the instances under this prefix say of themselves."""
        replies = [json.loads(reply) for reply in await self._gather("$SRV.PING", b"")]
        known = [reply.get("metadata") or {} for reply in replies]
        return [metadata for metadata in known if metadata.get("prefix") == self._prefix]

    async def health(self) -> Health:
        there = {instance.get("stage") for instance in await self._instances()}
        stages = {stage: StageState("ready" if stage in there else "missing") for stage in STAGES}
        return Health(is_ready=there.issuperset(STAGES), stages=stages)

    async def models(self) -> tuple[Model, ...]:
        names = {str(i.get("model")) for i in await self._instances() if i.get("stage") == "llm"}
        return tuple(decode(Model, {"id": name}) for name in sorted(names))

    async def upload(self, path: str) -> File:
        raise _only_http("upload")

    async def export(self, job: str, format: str, options: Mapping[str, Any]) -> bytes:
        raise _only_http("export")

    async def load(self, verb: str, stage: str | None) -> Mapping[str, Any]:
        raise _only_http(verb)

    async def aclose(self) -> None:
        if self._nc is not None:
            await self._nc.close()


async def _heard(heard: Any) -> None:
    """Waits until an event is heard of, or it is time to look for one; what was heard is read from the stream."""
    try:
        await heard.next_msg(timeout=LOOK_S)
        while heard.pending_msgs:
            await heard.next_msg(timeout=LOOK_S)
    except (nats.errors.Error, asyncio.TimeoutError):
        pass


async def _left(heard: Any) -> None:
    """Ends a subscription, which may have ended with its connection."""
    with contextlib.suppress(nats.errors.Error):
        await heard.unsubscribe()


def unpacked(body: bytes) -> dict[str, Any]:
    """A message in JSON or MessagePack."""
    try:
        data = json.loads(body) if body.startswith(b"{") else msgpack.unpackb(body, raw=False)
    except Exception as error:
        raise ProtocolError(f"a message is neither JSON nor MessagePack: {error}", kind="protocol") from error
    if not isinstance(data, dict):
        raise ProtocolError("a message is no map", kind="protocol")
    return data


def _only_http(what: str) -> VidiError:
    hint = "connect to the HTTP gateway for it; over the bus videos are named by their paths below a media root"
    return VidiError(f"not done over the bus: {what}", kind="bad_request", hint=hint)
