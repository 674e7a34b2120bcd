#!/usr/bin/env python3
"""Asks the product about made videos in mode after mode, and prints one table: how right each is, and what it costs beside the first.

    modes.py VIDEOS --vidi VIDI --out DIR [--device cpu|cuda] [--modes "f32;bf16;..."] [--decoder GPU_BENCH] [--dump DIR]

Without --modes: all that the device runs.  A mode whose answers lie in DIR already is not asked again.  --dump keeps what the model saw in
the first mode.  Intervals are 95 %, from a bootstrap over videos; a cost is a difference answer by answer, of the same questions.
"""
import argparse
import json
import os

from ask import MODEL, judged_of, read_json, run, settings
from measures import difference, summary

# Settings by mode, on any device.
QUANTIZED = {"q8 weights": dict(weights="q8"), "q4 weights": dict(weights="q4"), "q8 KV": dict(kv="q8"), "q4 KV": dict(kv="q4"),
             "q8 + q8": dict(weights="q8", kv="q8"), "q4 + q4": dict(weights="q4", kv="q4")}


def modes(device):
    """{mode: what stands before `up`}"""
    where = [f"compute.device={device}"]
    dense = {t: settings([*where, f"compute.dtype={t}"]) for t in (["f32"] if device == "cpu" else ["f32", "f16", "bf16"])}
    below = list(dense.values())[-1]
    blocks = {mode: below + settings(f"llm.{k}={v}" for k, v in pairs.items()) for mode, pairs in QUANTIZED.items()}
    if device == "cpu":
        return {**dense, **blocks}
    fp8 = settings(["compute.media_products=fp8"])
    return {**dense, "fp8": below + fp8, **blocks, "q4 + q4, fp8": blocks["q4 + q4"] + fp8, "4090-shared": ["--profile", "4090-shared"]}


def answers_of(mode, options, a, dump):
    """The mode's answers from its file, else from the product."""
    path = os.path.join(a.out, mode.replace(" ", "") + ".json")
    if os.path.exists(path):
        done = read_json(path)
        if done["options"] != options:
            raise SystemExit(f"{path} has other settings: {done['options']}")
        return done
    done = run(a.vidi, a.model, a.videos, options, a.decoder, dump)
    with open(path, "w") as f:
        json.dump(done, f, indent=1)
    return done


def span(f, sign=""):
    return f"{f['mean']:{sign}.4f} ({f['low']:{sign}.4f} to {f['high']:{sign}.4f})"


def row(mode, done, first):
    """One line of the table."""
    mine, base = judged_of(done["answers"]), judged_of(first["answers"])
    figures = summary(mine)
    same = sum(x["tokens"] == y["tokens"] for x, y in zip(done["answers"], first["answers"], strict=True))
    cost = "" if done is first else span(difference(mine, base)["iou"], "+")
    cells = [mode, *(span(figures[g]) if g in figures else "" for g in ("iou", "iou over 0.5", "absent", "qa")), cost, f"{same} of {len(done['answers'])}"]
    return "| " + " | ".join(cells) + " |"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("videos")
    ap.add_argument("--vidi", default="vidi")
    ap.add_argument("--model", default=MODEL)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--modes", help="names of the table, with semicolons between them")
    ap.add_argument("--out", required=True)
    ap.add_argument("--decoder")
    ap.add_argument("--dump")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    known = modes(a.device)
    chosen = [m.strip() for m in a.modes.split(";")] if a.modes else list(known)
    first = None
    print("| mode | IoU | over 0.5 | absent | qa | IoU beside the first | same tokens as the first |\n| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for mode in chosen:
        done = answers_of(mode, known[mode], a, None if first else a.dump)
        first = first or done
        print(row(mode, done, first), flush=True)


if __name__ == "__main__":
    main()
