"""How right answers are: temporal IoU, and shares, with intervals from a bootstrap over videos."""
from dataclasses import dataclass

import numpy as np

from reference import vo
from scenes import union

RESAMPLES = 2000


@dataclass
class Judged:
    """One answer.  video: which one; groups: what it counts towards; value: IoU, or 1 for right and 0 for wrong."""
    video: str
    groups: list
    value: float


def iou(found, true):
    """Length of the intersection over that of the union, of two lists of intervals."""
    found, true = union([s for s in found if s[1] > s[0]]), union(true)
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in found for c, d in true)
    whole = sum(b - a for a, b in found) + sum(d - c for c, d in true) - both
    return both / whole if whole > 0 else 0.0


def judge(video, duration, question, said, found=None):
    """One answer in words, held against the truth -> [Judged].  found: its intervals in seconds, if somebody else read them"""
    if question.kind == "absent":
        return [Judged(video, ["absent"], float(said == question.answer))]
    if question.kind == "qa":
        return [Judged(video, ["qa", "qa " + " ".join(question.text.split()[:2])], float(said == question.answer))]
    if found is None:
        found = [(float(a) * duration, float(b) * duration) for a, b in vo.RANGE_RE.findall(said)]
    value = iou(found, question.segments)
    how_many = "one segment" if len(question.segments) == 1 else "several segments"
    groups = ["iou", f"iou {question.sense}", f"iou {how_many}", "iou up to 20 s" if duration <= 20 else "iou over 20 s"]
    return [Judged(video, groups, value), Judged(video, ["iou over 0.5"], float(value > 0.5))]


def interval(by_video, rng):
    """{video: values} -> mean, low and high (95 %, resampled over videos), answers, videos"""
    sums = np.array([sum(v) for v in by_video.values()])
    counts = np.array([len(v) for v in by_video.values()])
    picked = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[picked].sum(1) / counts[picked].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return dict(mean=round(float(sums.sum() / counts.sum()), 4), low=round(float(low), 4), high=round(float(high), 4),
                answers=int(counts.sum()), videos=len(sums))


def summary(judged, seed=0):
    """{group: its interval}"""
    rng, out = np.random.default_rng(seed), {}
    for group in sorted({g for j in judged for g in j.groups}):
        by_video = {}
        for j in judged:
            if group in j.groups:
                by_video.setdefault(j.video, []).append(j.value)
        out[group] = interval(by_video, rng)
    return out


def difference(judged, base, seed=0):
    """{group: interval of judged minus base, answer by answer}; both are about the same questions in one order"""
    pairs = []
    for one, other in zip(judged, base, strict=True):
        if (one.video, one.groups) != (other.video, other.groups):
            raise SystemExit(f"answers about other questions: {one} and {other}")
        pairs.append(Judged(one.video, one.groups, one.value - other.value))
    return summary(pairs, seed)


def table(figures):
    """The summary as lines of text."""
    lines = [f"{'':24s} {'mean':>7s} {'95 %':>15s} {'answers':>8s} {'videos':>7s}"]
    for group, f in figures.items():
        lines.append(f"{group:24s} {f['mean']:7.4f} {f['low']:7.4f}-{f['high']:.4f} {f['answers']:8d} {f['videos']:7d}")
    return "\n".join(lines)
