#!/usr/bin/env python3
"""Asks a checkpoint about scenes that it has never seen, in PyTorch and f32, and says how right it is.

    evaluate.py CHECKPOINT [--videos 300] [--seed 777] [--device cuda] [--out evaluation.json]

Greedy decoding, eight questions about each video of 10 to 60 s.  Training draws its scenes from other seeds.
"""
import argparse
import json
import random
import time

import torch

import checkpoint
from batches import collate, to_device
from encode import Encoder
from layers import Functions
from measures import judge, summary, table
from model import Model
from questions import draw_questions
from reference import vo
from scenes import draw_scene
from words import Words

SHORTEST, LONGEST = 10, 60
QUESTIONS = 8
FRAMES_AT_ONCE = 320
MOST_TOKENS = 16
SAMPLES = 24


@torch.no_grad()
def generate(model, prompts, media, audible, limit=MOST_TOKENS):
    """Greedy answers.  prompts: lists of ids, the same number for each video -> lists of ids, with their end"""
    device = model.device
    rows, ended = [list(p) for p in prompts], [False] * len(prompts)
    for _ in range(limit):
        length = (max(map(len, rows)) + 3) // 4 * 4
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for r, row in enumerate(rows):
            ids[r, :len(row)] = torch.tensor(row)
        hidden, _ = model.text(ids.to(device), media, audible)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        chosen = model.logits(hidden[torch.arange(len(rows), device=device), last]).argmax(-1).tolist()
        for r, token in enumerate(chosen):
            if not ended[r]:
                rows[r].append(token)
                ended[r] = token == vo.GEMMA2.end_token
        if all(ended):
            break
    return [row[len(p):] for row, p in zip(rows, prompts)]


def exam(videos, seed):
    """[(index, scenes, questions)]: batches of videos of one duration, in random order, a function of both arguments alone."""
    rng = random.Random(seed)
    durations = sorted(rng.randint(SHORTEST, LONGEST) for _ in range(videos))
    batches, at = [], 0
    while at < videos:
        duration = durations[at]
        count = min(durations[at:].count(duration), max(1, FRAMES_AT_ONCE // duration))
        scenes = [draw_scene(rng, duration) for _ in range(count)]
        batches.append((len(batches), scenes, [draw_questions(rng, scene, QUESTIONS) for scene in scenes]))
        at += count
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def answer(model, encoder, words, index, scenes, questions):
    """The answers in words, a list for each video."""
    encoded = encoder(to_device(collate(words, scenes, questions, index), model.device))
    asked = [q for per_scene in questions for q in per_scene]
    said = generate(model, [words.prompt(q.text) for q in asked], encoded.media, encoded.audible)
    texts = iter(words.decode(ids) for ids in said)
    return [[next(texts) for _ in per_scene] for per_scene in questions]


def evaluate(model, words, videos, seed, until=None):
    """-> (figures, samples, videos asked).  until: time.monotonic() after which no batch is begun"""
    precise(True)
    model.functions, model.stream = Functions(), torch.float32
    encoder, judged, samples, asked = Encoder(model, seed), [], [], 0
    for index, scenes, questions in exam(videos, seed):
        if until is not None and time.monotonic() > until:
            break
        for v, (scene, per_scene, said) in enumerate(zip(scenes, questions, answer(model, encoder, words, index, scenes, questions))):
            for question, text in zip(per_scene, said):
                judged += judge(f"{index}.{v}", scene.duration, question, text)
            if len(samples) < SAMPLES:
                samples.append(f"{scene.duration} s | {per_scene[0].text} | {said[0]} | true: {per_scene[0].answer}")
            asked += 1
    return summary(judged), samples, asked


def precise(yes):
    """Whole f32 matrices on the GPU, or TF32."""
    torch.backends.cuda.matmul.allow_tf32 = not yes
    torch.backends.cudnn.allow_tf32 = not yes


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("--videos", type=int, default=300)
    ap.add_argument("--seed", type=int, default=777)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--out", help="figures and samples as JSON")
    a = ap.parse_args()
    model = Model(*checkpoint.load(a.checkpoint), a.device)
    figures, samples, asked = evaluate(model, Words(), a.videos, a.seed)
    print(table(figures), *samples, sep="\n")
    if a.out:
        with open(a.out, "w") as f:
            json.dump(dict(figures=figures, samples=samples, videos=asked, seed=a.seed), f, indent=1)


if __name__ == "__main__":
    main()
