#!/usr/bin/env python3
"""Holds the product's answers against PyTorch's on what the product itself decoded; exit status 1 if they differ.

    compare.py SEEN ANSWERS.json [--model deploy/demo-model] [--videos N] [--precise 0.005] [--out FILE]

SEEN is the folder of ask.py's --dump, ANSWERS.json its --out in f32.  In f32 on a CPU the oracle sees and hears each video and answers its
first question; all its questions are answered from the oracle's media tokens by this package's forward pass, which check.py holds against
the oracle.  Held: the same tokens in every answer, and mean IoUs that differ by no more than --precise.
"""
import argparse
import itertools
import json
import math
import os

import numpy as np
import torch

import checkpoint
from ask import MODEL, as_question, judged_of, read_json
from evaluate import generate
from measures import difference, judge, summary
from model import Model
from reference import vo
from words import Words


MOST_TOKENS = 24


def seen_by(directory):
    """The frames and samples of a dump, as the oracle takes them."""
    pcm, path = None, os.path.join(directory, "pcm.npy")
    if os.path.exists(path):
        pcm = np.load(path)
        pcm = pcm.astype(np.float32) / 32768 if pcm.dtype == np.int16 else pcm
    return np.load(os.path.join(directory, "frames.npy")), pcm


class Reference:
    """The oracle, and this package's forward pass behind the oracle's towers and adapters."""

    def __init__(self, checkpoint_directory):
        self.oracle = vo.Oracle(checkpoint_directory, "float32", "ideal")
        self.model, self.words = Model(*checkpoint.load(checkpoint_directory)), Words()

    def same(self, prompts, answers, media):
        """Whether greedy decoding gives these answers: one pass over all of them shows what comes next behind each beginning."""
        ids = torch.zeros(len(prompts), max(len(p) + len(a) for p, a in zip(prompts, answers)), dtype=torch.long)
        for row, prompt, answer in zip(ids, prompts, answers):
            row[:len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        chosen = self.model.logits(self.model.text(ids, media, torch.ones(1))[0]).argmax(-1).tolist()
        return all(row[len(p) - 1:len(p) - 1 + len(a)] == a for row, p, a in zip(chosen, prompts, answers))

    @torch.no_grad()
    def ask(self, directory, questions, answers):
        """answers: the product's tokens -> (PyTorch's tokens of each answer, the oracle's own of the first one)"""
        frames, pcm = seen_by(directory)
        rec, info = self.oracle.run(frames, pcm, user_text="<image>\n" + questions[0].text, record_mm=False, max_new=MOST_TOKENS)
        scale, media = math.sqrt(self.model.dims["hidden"]), {}
        for name in ("image", "audio"):
            if f"{name}_tokens" in rec:
                tokens = rec[f"{name}_tokens"] * scale
                media[name] = self.model.media(tokens, 1, len(tokens))
        prompts = [self.words.prompt(q.text) for q in questions]
        told = answers if self.same(prompts, answers, media) else generate(self.model, prompts, media, torch.ones(1), MOST_TOKENS)
        return told, info["generated_token_ids"]


def compare(reference, seen, answers, videos):
    """-> ([the product's answers], [PyTorch's judged], [what differs]) of the first `videos` videos"""
    ours, theirs, others = [], [], []
    by_video = itertools.groupby(answers, lambda a: a["video"])
    for name, per_video in itertools.islice(by_video, videos):
        per_video, truth = list(per_video), read_json(os.path.join(seen, name + ".json"))
        questions = [as_question(told) for told in truth["questions"]]
        told, first = reference.ask(os.path.join(seen, name), questions, [a["tokens"] for a in per_video])
        if first != per_video[0]["tokens"]:
            others.append(f"{name}: {questions[0].text}: the oracle says otherwise: {reference.words.decode(first)}")
        for a, question, tokens in zip(per_video, questions, told, strict=True):
            said = reference.words.decode(tokens)
            theirs += judge(name, truth["duration"], question, said)
            if tokens != a["tokens"]:
                others.append(f"{name}: {question.text}: {a['said']}, PyTorch: {said}")
        ours += per_video
        print(f"{name}: {len(ours)} answers so far, {len(others)} differ", flush=True)
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
    ours, theirs, others = compare(Reference(a.model), a.seen, read_json(a.answers)["answers"], a.videos)
    mine, base = summary(judged_of(ours))["iou"], summary(theirs)["iou"]
    off = difference(judged_of(ours), theirs)["iou"]["mean"]
    print(*others, f"{len({x['video'] for x in ours})} videos, {len(ours)} answers, {len(others)} differ", sep="\n")
    print(f"mean IoU of {mine['answers']} answers: product {mine['mean']:.4f}, PyTorch {base['mean']:.4f}, off by {off:+.4f} of {a.precise}")
    if a.out:
        with open(a.out, "w") as f:
            json.dump(dict(product=mine, pytorch=base, off=off, answers=len(ours), others=others), f, indent=1)
    raise SystemExit(1 if others or not abs(off) <= a.precise else 0)


if __name__ == "__main__":
    main()
