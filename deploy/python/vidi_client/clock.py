"""Times as texts."""

from __future__ import annotations

import math
import re

_CODE = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d{1,2}(?:[.,]\d+)?)")
_SECONDS = re.compile(r"(?P<s>\d+(?:[.,]\d*)?)\s*(?:s|sec|seconds?)?")


def format_hundredths(seconds: float) -> str:
    """``HH:MM:SS.ff``, to the nearest hundredth of a second."""
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is no time")
    ticks = max(0, math.floor(seconds * 100 + 0.5))
    whole = ticks // 100
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{ticks % 100:02}"


def parse_seconds(time: str | float) -> float:
    """Seconds of ``HH:MM:SS.ff``, ``MM:SS``, ``12.5`` or ``12.5 s``, or of a number.

    Raises ``ValueError`` for anything else, and for what is below 0.
    """
    if isinstance(time, bool) or not isinstance(time, (str, int, float)):
        raise ValueError(f"{time!r} is no time: give seconds or HH:MM:SS.ff")
    if not isinstance(time, str):
        if not math.isfinite(time) or time < 0:
            raise ValueError(f"{time} is no time: give 0 or more seconds")
        return float(time)
    text = time.strip()
    if found := _CODE.fullmatch(text):
        hours, minutes = int(found["h"] or 0), int(found["m"])
        seconds = float(found["s"].replace(",", "."))
        if seconds >= 60 or (found["h"] and minutes >= 60):
            raise ValueError(f"{time!r} is no time: minutes and seconds are below 60")
        return hours * 3600 + minutes * 60 + seconds
    if found := _SECONDS.fullmatch(text):
        return float(found["s"].replace(",", "."))
    raise ValueError(f"{time!r} is no time: give seconds or HH:MM:SS.ff")


def parse_range(text: str) -> tuple[float, float]:
    """Start and end, seconds, of ``START-END``; raises ``ValueError`` for anything else."""
    start, dash, end = text.partition("-")
    if not dash:
        raise ValueError(f"{text!r} is no time range: give START-END")
    return parse_seconds(start), parse_seconds(end)
