"""Server-sent events (WHATWG HTML, 9.2), from bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

#: Bytes of one line at most: a result has some 100 KiB.
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    data: str


async def messages(chunks: AsyncIterable[bytes]) -> AsyncIterator[Message]:
    """The events of a stream; one that is cut before its empty line is none."""
    event, data = "message", list[str]()
    async for line in _lines(chunks):
        if not line:
            if data:
                yield Message(event, "\n".join(data))
            event, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    # Only CR, LF and CRLF end a line here; str.splitlines knows others, which JSON may hold.
    rest, was_cr = b"", False
    async for chunk in chunks:
        if was_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if not chunk:
            continue
        was_cr = chunk.endswith(b"\r")
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MOST_BYTES:
            raise ValueError(f"a line of over {MOST_BYTES} bytes")
        for line in whole:
            yield line.decode("utf-8", "replace")
