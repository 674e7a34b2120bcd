#!/usr/bin/env python3
"""Holds the product's answers against the oracle's on what the product itself decoded; exit status 1 if they differ.

    compare.py SEEN ANSWERS.json [--model deploy/demo-model] [--videos N] [--precise 0.005] [--out FILE]

SEEN is the folder of ask.py's --dump, ANSWERS.json its --out in f32.  PyTorch in f32 on a CPU answers each question, token by token.
Held: the same tokens in every answer, and mean IoUs that differ by no more than --precise.
"""
import argparse
import itertools
import json
import os

import numpy as np

from ask import MODEL, as_question, judged_of, read_json
from measures import difference, judge, summary
from reference import vo


class Video:
    """One video as the oracle sees it; both towers run once for all questions."""

    def __init__(self, oracle, directory):
        self.oracle = oracle
        self.frames = np.load(os.path.join(directory, "frames.npy"))
        path = os.path.join(directory, "pcm.npy")
        self.pcm = np.load(path) if os.path.exists(path) else None
        if self.pcm is not None and self.pcm.dtype == np.int16:
            self.pcm = self.pcm.astype(np.float32) / 32768
        self.known = dict(frames=self.frames, pcm=self.pcm)

    def ask(self, question):
        """-> (answer in words, tokens)"""
        rec, info = self.oracle.run(user_text="<image>\n" + question.text, record_mm=False, **self.known)
        self.known = dict(vision_features=rec["vision_features"])
        if self.pcm is not None:
            self.known.update(audio_features=rec["audio_features"], audio_frames=info["mel_frames"])
        return info["text"], info["generated_token_ids"]


def compare(oracle, seen, answers, videos):
    """-> ([the product's answers], [the oracle's judged], [what differs]) of the first `videos` videos"""
    ours, theirs, others = [], [], []
    by_video = itertools.groupby(answers, lambda a: a["video"])
    for name, per_video in itertools.islice(by_video, videos):
        video, truth = Video(oracle, os.path.join(seen, name)), read_json(os.path.join(seen, name + ".json"))
        for a, told in zip(per_video, truth["questions"], strict=True):
            question = as_question(told)
            said, tokens = video.ask(question)
            ours.append(a)
            theirs += judge(name, truth["duration"], question, said)
            if tokens != a["tokens"]:
                others.append(f"{name}: {question.text}: {a['said']}, the oracle: {said}")
    return ours, theirs, others


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("seen")
    ap.add_argument("answers")
    ap.add_argument("--model", default=MODEL)
    ap.add_argument("--videos", type=int, help="only so many")
    ap.add_argument("--precise", type=float, default=0.005)
    ap.add_argument("--out")
    a = ap.parse_args()
    oracle = vo.Oracle(a.model, "float32", "ideal")
    ours, theirs, others = compare(oracle, a.seen, read_json(a.answers)["answers"], a.videos)
    mine, base = summary(judged_of(ours))["iou"], summary(theirs)["iou"]
    off = difference(judged_of(ours), theirs)["iou"]["mean"]
    for other in others:
        print(other)
    print(f"{len({x['video'] for x in ours})} videos, {len(ours)} answers, {len(ours) - len(others)} with the oracle's tokens")
    print(f"mean IoU of {mine['answers']} answers: product {mine['mean']:.4f}, oracle {base['mean']:.4f}, off by {off:+.4f} of {a.precise}")
    if a.out:
        with open(a.out, "w") as f:
            json.dump(dict(product=mine, oracle=base, off=off, answers=len(ours), others=others), f, indent=1)
    raise SystemExit(1 if others or not abs(off) <= a.precise else 0)


if __name__ == "__main__":
    main()
