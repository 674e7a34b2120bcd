#!/usr/bin/env python3
"""Asks the product about made videos in one mode, and says how right it is.

    ask.py VIDEOS --vidi VIDI --out FILE [--set llm.kv=q4]... [--profile NAME] [--model deploy/demo-model] [--dump DIR] [--decoder GPU_BENCH]

VIDEOS is a folder of make_videos.py.  --dump keeps the frames and samples that the model saw, for compare.py and for --decoder: DIR
becomes a folder like VIDEOS.  --decoder asks about such a folder, without GStreamer.
"""
import argparse
import json
import os
import shutil
import time

from measures import Judged, judge, summary, table
from product import Product
from questions import RETRIEVAL, Question

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "..", "deploy", "demo-model")


def read_json(path):
    with open(path) as f:
        return json.load(f)


def settings(pairs):
    """The words of a command line that set keys."""
    return [word for pair in pairs for word in ("--set", pair)]


def truths(directory):
    """[(name, truth)] in order."""
    names = sorted(f[:-5] for f in os.listdir(directory) if f.endswith(".json"))
    return [(name, read_json(os.path.join(directory, name + ".json"))) for name in names]


def as_question(told):
    """The question of a truth's JSON."""
    text = f"{RETRIEVAL}{told['query']}?" if told["task"] == "retrieval" else told["query"]
    return Question(text, told["answer"], told["sense"], told["segments"])


def keep(dump, directory, name, truth):
    """What was just decoded, as a video of its own below `directory`."""
    to = os.path.join(directory, name)
    shutil.rmtree(to, ignore_errors=True)
    os.makedirs(to)
    for file in os.listdir(dump):
        shutil.move(os.path.join(dump, file), os.path.join(to, file))
    with open(to + ".json", "w") as f:
        json.dump(dict(truth, file=name), f, indent=1)


def ask_all(product, directory, dump=None, kept=None):
    """[{video, task, query, answer, said, ranges, tokens, judged}]"""
    answers = []
    for name, truth in truths(directory):
        for i, told in enumerate(truth["questions"]):
            result = product.ask(os.path.join(directory, truth["file"]), told["task"], told["query"])
            ranges = [(r["start_s"], r["end_s"]) for r in result["ranges"]]
            judged = judge(name, truth["duration"], as_question(told), result["text"].strip(), ranges)
            answers.append(dict(video=name, task=told["task"], query=told["query"], answer=told["answer"], said=result["text"].strip(),
                                ranges=ranges, tokens=result["token_ids"], judged=[vars(j) for j in judged]))
            if dump and i == 0:
                keep(dump, kept, name, truth)
    return answers


def judged_of(answers):
    """What `answers` were worth, in their order."""
    return [Judged(**j) for a in answers for j in a["judged"]]


def run(vidi, model, directory, options=(), decoder=None, kept=None):
    """One mode -> {options, seconds, figures, answers}"""
    dump = kept and os.path.join(kept, ".last")
    if dump:
        os.makedirs(dump, exist_ok=True)
    with Product(vidi, model, directory, options, decoder, dump) as product:
        start = time.monotonic()
        answers = ask_all(product, directory, dump, kept)
        seconds = time.monotonic() - start
    if dump:
        os.rmdir(dump)
    return dict(options=list(options), seconds=round(seconds, 1), figures=summary(judged_of(answers)), answers=answers)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("videos")
    ap.add_argument("--vidi", default="vidi")
    ap.add_argument("--model", default=MODEL)
    ap.add_argument("--out", required=True)
    ap.add_argument("--dump")
    ap.add_argument("--decoder")
    ap.add_argument("--set", action="append", default=[])
    ap.add_argument("--profile")
    a = ap.parse_args()
    options = settings(a.set) + (["--profile", a.profile] if a.profile else [])
    done = run(a.vidi, a.model, a.videos, options, a.decoder, a.dump)
    with open(a.out, "w") as f:
        json.dump(done, f, indent=1)
    print(f"{len(done['answers'])} questions in {done['seconds']} s", table(done["figures"]), sep="\n")


if __name__ == "__main__":
    main()
