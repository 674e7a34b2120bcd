#!/usr/bin/env python3
"""Asks about made videos question by question, then all questions of a task in one job, and holds the answers beside each other.

    several.py VIDEOS --vidi VIDI [--set llm.kv=q4]... [--profile NAME] [--model deploy/demo-model] [--decoder GPU_BENCH]

Both ways give the same tokens in f32 on a CPU, and on an H100 in f16, bf16 and the profile 4090-shared (tests/BENCHMARKS.md).
"""
import argparse
import os
import time

from ask import MODEL, as_question, settings, truths
from measures import judge, summary, table
from product import Product


def judged(name, truth, told, answer):
    ranges = [(r["start_s"], r["end_s"]) for r in answer["ranges"]]
    return judge(name, truth["duration"], as_question(told), answer["text"].strip(), ranges)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("videos")
    ap.add_argument("--vidi", default="vidi")
    ap.add_argument("--model", default=MODEL)
    ap.add_argument("--decoder")
    ap.add_argument("--set", action="append", default=[])
    ap.add_argument("--profile")
    a = ap.parse_args()
    options = settings(a.set) + (["--profile", a.profile] if a.profile else [])
    alone, together, differ, asked, seconds = [], [], [], 0, [0.0, 0.0]
    with Product(a.vidi, a.model, a.videos, options, a.decoder) as product:
        for name, truth in truths(a.videos):
            video = os.path.join(a.videos, truth["file"])
            for task in ("retrieval", "qa"):
                told = [t for t in truth["questions"] if t["task"] == task]
                at = time.monotonic()
                one = [product.ask(video, task, t["query"]) for t in told]
                between = time.monotonic()
                # One question is no job of several.
                many = product.ask(video, task, *(t["query"] for t in told))["answers"] if len(told) > 1 else one
                seconds[0] += between - at
                seconds[1] += time.monotonic() - between
                asked += len(told)
                for t, x, y in zip(told, one, many, strict=True):
                    alone += judged(name, truth, t, x)
                    together += judged(name, truth, t, y)
                    if x["token_ids"] != y["token_ids"]:
                        differ.append(f"{name}: {t['query']}: {x['text']!r} alone, {y['text']!r} in one job; the truth is {t['answer']!r}")
    print(f"alone, {seconds[0]:.1f} s:", table(summary(alone)), f"in one job, {seconds[1]:.1f} s:", table(summary(together)), sep="\n")
    print(f"{len(differ)} of {asked} answers have other tokens", *differ, sep="\n")


if __name__ == "__main__":
    main()
