"""Cuts time ranges out of a video with ffmpeg, as `vidi ask --clips` does: exact to the frame, or fast at key frames."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .clock import format_hundredths
from .errors import ClipError, MediaNotFoundError

log = logging.getLogger(__name__)

#: No questions, errors only, files that are there are replaced, and what the input names is not opened.
_BEFORE = ["-nostdin", "-v", "error", "-y", "-protocol_whitelist", "file"]
#: H.264 in 4:2:0 needs even sides.
_PICTURES = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
_SOUND = ["-c:a", "aac", "-b:a", "192k"]
#: Nothing of the source's chapters and time codes; a clip without a picture or a sample is an error.
_CLIP = "-sn -dn -map_metadata -1 -map_chapters -1 -abort_on empty_output".split()
#: Containers with an index, in which ffmpeg seeks to a key frame before the time that is asked for.
_INDEXED = {"mov", "mp4", "matroska", "webm"}


@dataclass(frozen=True)
class _Media:
    #: Frames a second; none for sound alone.
    rate: Fraction | None
    #: First picture behind the least time stamp, from which ffmpeg's ``-ss`` counts, seconds.
    lead_s: float
    has_index: bool


def cut_clips(
    video: str | os.PathLike[str],
    ranges: Iterable[tuple[float, float]],
    output_dir: str | os.PathLike[str],
    *,
    copy: bool = False,
) -> list[str]:
    """Cuts each range, start and end in seconds, into a file ``STEM-NN.mp4`` (``.m4a`` for sound alone); their paths, in order.

    Each clip has the frames of its range and no other. With ``copy`` nothing is encoded again: that is fast, and a clip begins at the key
    frame before its range. Raises ``ClipError``, which names the clip that failed; what was cut before it stays.
    """
    video, wanted = os.fspath(video), list(ranges)
    if not os.path.isfile(video):
        raise MediaNotFoundError(f"no video {video!r} to cut", kind="media_not_found")
    media = _probe(video)
    os.makedirs(output_dir, exist_ok=True)
    if copy and wanted:
        log.warning("clips of %s are cut at key frames: each may begin some seconds before its range", video)
    stem, ending = os.path.splitext(os.path.basename(video))[0], "mp4" if media.rate else "m4a"
    if copy:
        # The codecs stay, so the container does.
        ending = os.path.splitext(video)[1].lstrip(".") or ending
    width, files = max(len(str(len(wanted))), 2), list[str]()
    for number, (start_s, end_s) in enumerate(wanted, 1):
        file = os.path.join(output_dir, f"{stem}-{number:0{width}}.{ending}")
        try:
            _run(_arguments(video, media, start_s, end_s, file, copy))
        except _FailedError as why:
            if os.path.exists(file) and not os.path.samefile(file, video):
                os.remove(file)
            name = f"clip {number} of {len(wanted)}, {file} ({_shown(start_s)} to {_shown(end_s)})"
            raise ClipError(f"{name}, failed: {why}", kind="clip") from None
        files.append(file)
    return files


class _FailedError(Exception):
    """Why a clip could not be cut."""


def _shown(seconds: float) -> str:
    return format_hundredths(seconds) if math.isfinite(seconds) else str(seconds)


def _arguments(video: str, media: _Media, start_s: float, end_s: float, file: str, copy: bool) -> list[str]:
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s <= end_s):
        raise _FailedError("its range does not begin before it ends")
    if os.path.exists(file) and os.path.samefile(file, video):
        raise _FailedError("it would replace the video")
    if media.rate and not copy:
        # Frame n begins at n / rate. A tenth of a frame before it, rounding in a container does not hide it.
        first = _nearest(start_s * media.rate)
        count = max(_nearest(end_s * media.rate) - first, 1)
        from_s = float(Fraction(max(first * 10 - 1, 0), 10) / media.rate)
        length_s = float(Fraction(count * 10 - 1, 10) / media.rate)
    else:
        from_s, length_s = start_s, max(end_s - start_s, 0.001)
    seek, source = ["-ss", _micros(media.lead_s + from_s)], ["-i", f"file:{video}"]
    how = ["-c", "copy"] if copy else [*(_PICTURES if media.rate else ["-vn"]), *_SOUND]
    # Before the input it is sought, and decoded from a key frame on; behind it, all before is decoded and left out.
    fast = ["-movflags", "+faststart"] if file.endswith((".mp4", ".m4a", ".mov")) else []
    where = [*seek, *source] if media.has_index else [*source, *seek]
    return ["ffmpeg", *_BEFORE, *where, "-t", _micros(length_s), *how, *_CLIP, *fast, f"file:{file}"]


def _nearest(frames: Fraction | float) -> int:
    return math.floor(frames + Fraction(1, 2))


def _micros(seconds: float) -> str:
    # Cut off, not rounded: behind the moment that was asked for a frame would be missed.
    return f"{math.floor(max(seconds, 0.0) * 1e6 + 1e-3) / 1e6:.6f}"


def _probe(video: str) -> _Media:
    entries = "format=start_time,format_name:stream=codec_type,start_time,avg_frame_rate:stream_disposition=attached_pic"
    command = ["ffprobe", "-v", "error", "-protocol_whitelist", "file", "-of", "json", "-show_entries", entries]
    try:
        told = json.loads(_run([*command, f"file:{video}"]))
    except _FailedError as why:
        raise ClipError(f"{video} cannot be read: {why}", kind="clip") from None
    is_picture = [
        s.get("codec_type") == "video" and not s.get("disposition", {}).get("attached_pic") for s in told.get("streams", [])
    ]
    picture: dict[str, Any] = next((s for s, is_one in zip(told.get("streams", []), is_picture) if is_one), {})
    form = told.get("format", {})
    file_s = _number(form.get("start_time"), 0.0)
    rate = _rate(picture.get("avg_frame_rate", ""))
    lead_s = _number(picture.get("start_time"), file_s) - file_s if rate else 0.0
    return _Media(rate, lead_s, bool(_INDEXED & set(form.get("format_name", "").split(","))))


def _rate(text: str) -> Fraction | None:
    """The rate that ffprobe says: that of a standard within 0.01 % of it, else as it is."""
    try:
        told = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    if told <= 0:
        return None
    known = [Fraction(n) for n in (24, 25, 30, 48, 50, 60)] + [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60)]
    near = min(known, key=lambda rate: abs(rate - told))
    return near if abs(near - told) < told / 10000 else told


def _number(text: object, default: float) -> float:
    try:
        number = float(str(text))
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def _run(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise _FailedError(f"{command[0]} cannot be started ({error.strerror}): install it (apt install ffmpeg)") from None
    if ended.returncode == 0:
        return ended.stdout
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    raise _FailedError(f"{command[0]} ended with status {ended.returncode}: {said[-1] if said else 'it said nothing'}")
