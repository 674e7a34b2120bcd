"""Picture of an answer for notebooks: ranges over the length of the video, as an SVG in the page; every text is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .clock import format_hundredths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Answer, Range, Result

#: Width of the picture, height of a row, and space for the labels below, CSS pixels.
_WIDTH, _ROW, _AXIS = 640, 22, 18
#: Steps between two labels, seconds.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
#: Rows and characters that are shown at most.
_MOST_ROWS, _MOST_CHARACTERS = 64, 2000


def html_of(result: Result) -> str:
    """The answer, and its time line where it has ranges."""
    rows: Sequence[Result | Answer] = result.answers[:_MOST_ROWS] if result.answers else [result]
    parts = []
    if any(row.ranges for row in rows):
        length_s = max(result.plan.duration_s, *(r.end_s for row in rows for r in row.ranges))
        parts.append(_svg([row.ranges for row in rows], length_s))
    for row in rows:
        query = f"<b>{escape(_short(row.query))}</b>: " if result.answers and hasattr(row, "query") else ""
        parts.append(f"<p>{query}{escape(_short(row.text)) or '<i>no text</i>'}</p>")
        if row.reason:
            parts.append(f"<p><i>{escape(_short(row.reason))}</i></p>")
    if result.supported == "experimental":
        parts.append("<p><i>experimental: the model was not trained for this task</i></p>")
    parts += [f"<p><i>{escape(_short(note))}</i></p>" for note in result.notes]
    return f'<div class="vidi-result">{"".join(parts)}</div>'


def _svg(rows: Sequence[Sequence[Range]], length_s: float) -> str:
    length_s = max(length_s, 1e-6)

    def x(seconds: float) -> float:
        return round(min(max(seconds / length_s, 0.0), 1.0) * _WIDTH, 2)

    height = _ROW * len(rows) + _AXIS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" font-family="sans-serif" font-size="10">'
    ]
    for at, ranges in enumerate(rows):
        top = at * _ROW
        parts.append(f'<rect x="0" y="{top + 2}" width="{_WIDTH}" height="{_ROW - 6}" fill="#e5e7eb"/>')
        for one in ranges:
            # What is shorter than two pixels is still seen.
            width = max(x(one.end_s) - x(one.start_s), 2)
            said = f"{one}: {_short(one.title)}" if one.title else str(one)
            parts.append(
                f'<rect x="{x(one.start_s)}" y="{top + 2}" width="{width:.2f}" height="{_ROW - 6}" fill="#2563eb">'
                f"<title>{escape(said)}</title></rect>"
            )
    step = next((step for step in _STEPS if length_s / step <= 8), _STEPS[-1])
    for tick in range(int(min(length_s // step, 64)) + 1):
        at_s = tick * step
        anchor = "start" if tick == 0 else "end" if x(at_s) > _WIDTH - 20 else "middle"
        label = format_hundredths(at_s)[:-3].removeprefix("00:")
        parts.append(f'<text x="{x(at_s)}" y="{height - 5}" text-anchor="{anchor}" fill="#6b7280">{label}</text>')
    return "".join([*parts, "</svg>"])


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
