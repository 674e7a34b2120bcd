"""Clips, picture by picture."""

from __future__ import annotations

import logging
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

from vidi_client import ClipError, cut_clips

#: Bytes of a picture that is compared: grey, 32 x 18.
PICTURE = 32 * 18


def ffmpeg(*args: str) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *args], check=True, capture_output=True).stdout


def pictures(file: str | Path) -> list[bytes]:
    grey = ffmpeg("-i", str(file), "-vf", "scale=32:18:flags=area,format=gray", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    return [grey[at : at + PICTURE] for at in range(0, len(grey), PICTURE)]


def made(path: Path, rate: str, seconds: int, *more: str) -> Path:
    picture = ["-f", "lavfi", "-i", f"testsrc2=size=160x90:rate={rate}:duration={seconds}"]
    sound = ["-f", "lavfi", "-i", f"sine=duration={seconds}"]
    ffmpeg(*picture, *sound, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-g", "50", "-c:a", "aac", *more, str(path))
    return path


def difference(one: bytes, other: bytes) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("rate", "name", "more"),
    [("25", "it's 25.mp4", []), ("30000/1001", "ntsc.mkv", []), ("25", "late.ts", ["-output_ts_offset", "7"])],
)
def test_a_clip_has_the_pictures_of_its_range_and_no_other(tmp_path: Path, rate: str, name: str, more: list[str]) -> None:
    video = made(tmp_path / name, rate, 4, *more)
    all_of_it = pictures(video)
    ranges = [(0.0, 1.0), (1.03, 1.61), (3.2, 3.2)]
    files = cut_clips(video, ranges, tmp_path / "clips")
    assert [Path(file).name for file in files] == [f"{video.stem}-{n:02}.mp4" for n in (1, 2, 3)]
    for file, (start_s, end_s) in zip(files, ranges, strict=True):
        first, last = (int(s * Fraction(rate) + Fraction(1, 2)) for s in (start_s, end_s))
        due = all_of_it[first : max(last, first + 1)]
        cut = pictures(file)
        assert len(cut) == len(due), (file, len(cut))
        for at, picture in enumerate(cut):
            near = range(max(first + at - 2, 0), min(first + at + 3, len(all_of_it)))
            assert min(near, key=lambda n: difference(picture, all_of_it[n])) == first + at, (file, at)


def test_a_copy_begins_at_a_key_frame_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = made(tmp_path / "x.mp4", "25", 4)
    with caplog.at_level(logging.WARNING):
        (file,) = cut_clips(video, [(2.5, 3.0)], tmp_path, copy=True)
    assert "key frames" in caplog.text
    # A key frame each 2 s: the copy has at least what was asked for, in the same bytes.
    probe = ["ffprobe", "-v", "error", "-select_streams", "v", "-count_packets", "-show_entries", "stream=nb_read_packets,codec_name"]
    said = subprocess.run([*probe, "-of", "csv=p=0", file], check=True, capture_output=True, text=True).stdout
    codec, packets = said.strip().split(",")[:2]
    assert codec == "h264" and int(packets) >= 13


def test_a_clip_that_fails_is_an_error_that_names_it(tmp_path: Path) -> None:
    video = made(tmp_path / "x.mp4", "25", 2)
    with pytest.raises(ClipError, match=r"clip 2 of 3, .*x-02\.mp4 \(00:00:09\.00 to 00:00:10\.00\), failed") as told:
        cut_clips(video, [(0, 1), (9, 10), (1, 2)], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["x-01.mp4"] and told.value.kind == "clip"
    with pytest.raises(ClipError, match="begin before it ends"):
        cut_clips(video, [(2, 1)], tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        cut_clips(tmp_path / "nowhere.mp4", [(0, 1)], tmp_path)
    (tmp_path / "y.mp4").write_bytes(b"no video")
    with pytest.raises(ClipError, match="y.mp4 cannot be read"):
        cut_clips(tmp_path / "y.mp4", [(0, 1)], tmp_path)
    # Never over the video itself.
    (tmp_path / "z-01.mp4").symlink_to(made(tmp_path / "z.mp4", "25", 1))
    with pytest.raises(ClipError, match="replace the video"):
        cut_clips(tmp_path / "z.mp4", [(0, 1)], tmp_path)
    assert (tmp_path / "z.mp4").stat().st_size > 0


def test_sound_alone_is_cut_too(tmp_path: Path) -> None:
    sound = tmp_path / "x.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=3", str(sound))
    (file,) = cut_clips(sound, [(1.0, 2.0)], tmp_path / "out")
    probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", file]
    assert file.endswith("-01.m4a")
    assert float(subprocess.run(probe, check=True, capture_output=True, text=True).stdout) == pytest.approx(1.0, abs=0.06)
