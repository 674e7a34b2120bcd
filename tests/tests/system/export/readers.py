"""Reads exports back with programs that are not ours, and compares every time and title with the answer's.

    readers.py RATE ANSWER FILE...

RATE is a fraction (30000/1001). ANSWER is JSON: `ranges` (`start_s`, `end_s`, `title`), `query`, and `resolution_s`, or the
`text` and `plan` of `vidi ask --json`. Says what was read; ends with an error at the first difference.
`deploy/setup.sh test` installs the programs.
"""

import csv
import html
import json
import math
import re
import sys
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import opentimelineio as otio
import webvtt


def nearest(number):
    """The nearest whole number; halves up."""
    return math.floor(Fraction(number) + Fraction(1, 2))


class Answer:
    """What the files must say."""

    def __init__(self, answer, rate):
        self.rate = rate
        self.query = answer["query"]
        self.resolution_s = answer.get("resolution_s")
        if self.resolution_s is None:
            decimals = min(len(digits) for digits in re.findall(r"\d\.(\d+)", answer["text"]))
            self.resolution_s = answer["plan"]["duration_s"] / 10**decimals
        known = math.ceil(-math.log10(self.resolution_s) - 1e-9)
        self.tick = Fraction(1, 10 ** max(0, known))
        ranges = sorted(answer["ranges"], key=lambda r: (r["start_s"], r["end_s"]))
        # As they are written: 612.3 s are 15307.5 frames of 25 a second, and a bit less as an f64.
        spans = [[Fraction(str(r["start_s"])), Fraction(str(r["end_s"]))] for r in ranges]
        self.frames = [[nearest(second * rate) for second in span] for span in spans]
        self.seconds = [[nearest(second / self.tick) * self.tick for second in span] for span in spans]
        self.titles = [r.get("title") or self.query for r in ranges]
        assert ranges, "an answer without ranges proves nothing"


def same(what, found, due):
    """Fails unless what was found is what was due."""
    assert found == due, f"{what}: found {found}, due {due}"


def clips_of(timeline):
    """Source frames, place and marker of each clip of a timeline of OpenTimelineIO."""
    clips = list(timeline.find_clips())
    frames = [[int(c.source_range.start_time.value), int(c.source_range.end_time_exclusive().value)] for c in clips]
    places = [int(c.range_in_parent().start_time.value) for c in clips]
    lengths = [end - start for start, end in frames]
    same("places", places, [sum(lengths[:at]) for at in range(len(lengths))])
    return clips, frames


def read_otio(path, answer):
    timeline = otio.adapters.read_from_file(str(path))
    clips, frames = clips_of(timeline)
    same("frames", frames, answer.frames)
    for clip, title in zip(clips, answer.titles):
        same("title", (clip.name, clip.markers[0].name), (title, title))
        same("marker", clip.markers[0].marked_range, clip.source_range)
        same("rate", clip.source_range.start_time.rate, answer.rate.numerator / answer.rate.denominator)
        media = clip.media_reference
        assert media.target_url.startswith("file:///"), media.target_url
        assert media.available_range.contains(clip.source_range), media.available_range


def from_label(label, rate):
    return int(otio.opentime.from_timecode(label, float(rate)).value)


def read_places(text, answer):
    """Record codes of an edit decision list, one range behind the other from 01:00:00:00 on; no adapter tells them."""
    sign = ";" if "FCM: DROP FRAME" in text else ":"
    due = from_label(f"01:00:00{sign}00", answer.rate)
    codes = re.findall(r"^\d{3}  AX +V     C        \S+ \S+ (\S+) (\S+)$", text, re.M)
    same("events", len(codes), len(answer.frames))
    for (record_in, record_out), (start, end) in zip(codes, answer.frames):
        same("record", [from_label(record_in, answer.rate), from_label(record_out, answer.rate)], [due, due + end - start])
        assert (";" in record_in) == (sign == ";"), record_in
        due += end - start


def read_edl(path, answer):
    text = path.read_text()
    if "|C:" not in text:
        clips, frames = clips_of(otio.adapters.read_from_file(str(path), adapter_name="cmx_3600", rate=float(answer.rate)))
        same("frames", frames, answer.frames)
        comments = [clip.metadata["cmx_3600"]["comments"][0] for clip in clips]
        same("titles", comments, [f"COMMENT: {title}" for title in answer.titles])
        assert all(clip.name.endswith(".mp4") for clip in clips), [clip.name for clip in clips]
        read_places(text, answer)
        return
    event = r"^\d{3}  \S+ +V     C        (\S+) (\S+) (\S+) (\S+)\n.* \|C:ResolveColorBlue \|M:([^|]*) \|D:(\d+)$"
    events = re.findall(event, text, re.M)
    sign = ";" if "FCM: DROP FRAME" in text else ":"
    hour = from_label(f"01:00:00{sign}00", answer.rate)
    frames = []
    for source_in, _, record_in, record_out, _, length in events:
        start = from_label(record_in, answer.rate)
        same("in points", source_in, record_in)
        same("length of a marker's event", from_label(record_out, answer.rate) - start, 1)
        frames.append([start - hour, start - hour + int(length)])
    same("frames", frames, answer.frames)
    same("titles", [e[4] for e in events], [title.replace("|", "/") for title in answer.titles])


def read_fcpxml(path, answer):
    root = ElementTree.parse(path).getroot()
    same("version", root.get("version"), "1.9")
    second = lambda text: Fraction(text.removesuffix("s"))
    frame = second(root.find("resources/format").get("frameDuration"))
    same("rate", 1 / frame, answer.rate)
    clips = root.findall("library/event/project/sequence/spine/asset-clip")
    same("titles", [clip.get("value") for clip in root.iter("marker")], answer.titles)
    offset = 0
    for clip, (start, end) in zip(clips, answer.frames):
        times = [second(clip.get(name)) / frame for name in ("offset", "start", "duration")]
        same("frames", times, [offset, start, end - start])
        same("marker", clip.find("marker").get("start"), clip.get("start"))
        offset += end - start
    same("clips", len(clips), len(answer.frames))
    same("length", second(root.find("library/event/project/sequence").get("duration")) / frame, offset)
    assert root.find("resources/asset/media-rep").get("src").startswith("file:///")
    # The adapter takes 30000/1001 for 29, so it counts right at whole rates alone.
    clips = list(otio.adapters.read_from_file(str(path), adapter_name="fcpx_xml").find_clips())
    same("names", [clip.name for clip in clips], answer.titles)
    if answer.rate.denominator == 1:
        ranges = [clip.source_range for clip in clips]
        same("frames", [[r.start_time.value, r.end_time_exclusive().value] for r in ranges], answer.frames)


def read_captions(captions, titles, unescaped, answer):
    second = lambda text: sum(Fraction(part) * 60**at for at, part in enumerate(reversed(text.split(":"))))
    same("times", [[second(c.start), second(c.end)] for c in captions], answer.seconds)
    same("texts", [unescaped(c.text).split() for c in captions], [title.split() for title in titles])


def read_table(rows, answer):
    same("seconds", [[float(row["start_s"]), float(row["end_s"])] for row in rows],
         [[float(second) for second in both] for both in answer.seconds])
    same("titles", [row["title"] for row in rows], answer.titles)
    for row in rows:
        same("query", row["query"], answer.query)
        assert abs(float(row["resolution_s"]) - answer.resolution_s) < 1e-6, row
    codes = [[from_label(row[key], answer.rate) for key in ("start_tc", "end_tc")] for row in rows]
    same("time codes", codes, answer.frames)


def read_youtube(path, answer):
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    starts = [sum(int(part) * 60**at for at, part in enumerate(reversed(start.split(":")))) for start, _ in lines]
    assert starts[0] == 0 and len(starts) >= 3, starts
    assert all(after - start >= 10 for start, after in zip(starts, starts[1:])), starts
    # Ten seconds and more from each other, as the golden files' are, all ranges begin and end with a chapter.
    found = {start: title for start, (_, title) in zip(starts, lines)}
    for (start, end), title in zip(answer.seconds, answer.titles):
        same("title", found[nearest(start)], title.replace("<", "‹").replace(">", "›"))
        same("title behind", found[nearest(end)], "Other")


def read(path, answer):
    """Reads one file, by its ending."""
    ending = path.suffix
    if ending == ".otio":
        read_otio(path, answer)
    elif ending in (".edl", ".edl-markers"):
        read_edl(path, answer)
    elif ending == ".fcpxml":
        read_fcpxml(path, answer)
    elif ending == ".vtt":
        read_captions(webvtt.read(str(path)), answer.titles, html.unescape, answer)
    elif ending == ".srt":
        # SubRip has no escapes: a reader takes tags out.
        titles = [re.sub(r"<[^>]*>", "", title.replace("-->", "->")) for title in answer.titles]
        read_captions(webvtt.from_srt(str(path)), titles, str, answer)
    elif ending == ".csv":
        with open(path, newline="") as file:
            read_table(list(csv.DictReader(file)), answer)
    elif ending == ".json":
        read_table(json.loads(path.read_text()), answer)
    elif ending in (".txt", ".youtube"):
        read_youtube(path, answer)
    else:
        raise SystemExit(f"{path}: nothing here reads it")


def main():
    rate, answer, *files = sys.argv[1:]
    answer = Answer(json.loads(Path(answer).read_text()), Fraction(rate))
    for name in files:
        read(Path(name), answer)
        print(f"read {name}")


main()
