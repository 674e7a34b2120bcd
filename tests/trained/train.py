#!/usr/bin/env python3
"""Trains a small Vidi on scenes that it makes as it goes, writes it as a checkpoint, and asks it about 300 unseen videos.

    train.py --out DIR [--minutes 9 --reserve 65]       one H100: training ends `reserve` seconds before `minutes` are over
    train.py --out DIR --steps 2 --frames 32 ...        by steps instead; also on a CPU
    train.py --out DIR --again RUN.json                 the batches and the progress of an earlier run, step by step

DIR/checkpoint (every two minutes, and at the end), DIR/run.json (what it did: steps, progress, checksum of all batches),
DIR/evaluation.json, and the log on standard output.  README.md says what to expect.
"""
import argparse
import json
import math
import os
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

import checkpoint  # noqa: E402
import schedule  # noqa: E402
from batches import Batches, Order, loader, to_device  # noqa: E402
from encode import Encoder  # noqa: E402
from evaluate import evaluate, precise  # noqa: E402
from initial import DIMS, initial_weights  # noqa: E402
from layers import Functions  # noqa: E402
from log import Log  # noqa: E402
from losses import Losses, Probes  # noqa: E402
from measures import table  # noqa: E402
from model import Model  # noqa: E402
from optimizer import Optimizers  # noqa: E402
from pictures import Painter  # noqa: E402
from words import Words  # noqa: E402

SAVE_EVERY_S = 120
WRITING_S = 6                                       # kept of the reserve for the files behind the evaluation


class Diverged(Exception):
    """The loss is no longer a number."""


class Run:
    """One training: its model, its batches and where it stands."""

    def __init__(self, args, start):
        self.args, self.start = args, start
        self.device = torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        self.words, self.step, self.crc, self.progress, self.skipped = Words(), 0, 0, [], []
        earlier = self.earlier()
        self.plan = schedule.Again(earlier["progress"]) if earlier else schedule.BySteps(args.steps) if args.steps \
            else schedule.ByClock(start, args.minutes * 60 - args.reserve)
        self.order = Order(lambda: schedule.level(self.progress[-1] if self.progress else 0.0), earlier and earlier["level_starts"])
        batches = Batches(args.seed, args.frames, args.questions)
        self.batches = iter(loader(batches, self.order, args.workers, self.on_gpu))
        self.build()

    def earlier(self):
        """The run that is to be repeated; its seed and sizes are taken over."""
        if not self.args.again:
            return None
        with open(self.args.again) as f:
            run = json.load(f)
        for name in ("seed", "frames", "questions"):
            setattr(self.args, name, run[name])
        return run

    def build(self):
        a = self.args
        torch.manual_seed(a.seed)
        precise(False)
        self.model = Model(initial_weights(DIMS, self.words.size, a.seed), DIMS, self.device)
        self.model.functions = Functions(a.compile)
        self.model.stream = torch.bfloat16 if self.on_gpu else torch.float32
        painter = Painter(self.model.stream, a.compile)
        probes = Probes(DIMS).to(self.device)
        encoder = Encoder(self.model, a.seed, a.frames if a.compile else 0, painter)
        self.losses = Losses(self.model, encoder, probes, self.words.times)
        self.optimizers = Optimizers(self.model.trained(), probes.parameters(), a.rate)

    def next_batch(self):
        started = time.monotonic()
        batch = next(self.batches)
        self.crc = (self.crc * 31 + batch["crc"]) & 0xFFFFFFFF
        return to_device(batch, self.device), time.monotonic() - started

    def one_step(self, progress):
        """-> figures for the log; {} if the batch did not fit the GPU's memory"""
        batch, waited = self.next_batch()
        self.progress.append(progress)
        try:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.on_gpu):
                loss, figures = self.losses(batch, schedule.weights(progress))
            loss.backward()
        except torch.OutOfMemoryError:
            print(f"out of memory: {batch['videos']} videos of {batch['duration']} s are left out", flush=True)
            self.skipped.append(batch["index"])
            self.optimizers.forget()
            torch.cuda.empty_cache()
            return {}
        figures["norm"] = self.optimizers.step(schedule.rate(progress, self.step))
        return dict(figures, wait=torch.tensor(waited))

    def train(self):
        log, saved = Log(self.start, self.args.every, self.on_gpu), time.monotonic()
        while (progress := self.plan.progress(self.step)) is not None:
            figures = self.one_step(progress)
            self.step += 1
            if not log.add(self.step, progress, figures):
                raise Diverged(f"the loss is no number before step {self.step}: the checkpoint is of {time.monotonic() - saved:.0f} s ago")
            if time.monotonic() - saved > SAVE_EVERY_S and math.isfinite(float(figures.get("loss", math.nan))):
                self.save()
                saved = time.monotonic()
        print(f"trained {self.step} steps in {self.elapsed():.0f} s", flush=True)

    def elapsed(self):
        return time.monotonic() - self.start

    def save(self):
        size = checkpoint.save(os.path.join(self.args.out, "checkpoint"), self.model.tensors, DIMS, self.words)
        a = self.args
        run = dict(seed=a.seed, frames=a.frames, questions=a.questions, steps=self.step, seconds=round(self.elapsed(), 1),
                   weights_bytes=size, parameters=sum(t.numel() for t in self.model.tensors.values()), batches_crc32=self.crc,
                   skipped=self.skipped, torch=torch.__version__, device=torch.cuda.get_device_name() if self.on_gpu else "CPU",
                   rate=a.rate, dims=DIMS, level_starts=self.order.starts, progress=self.progress)
        write_json(os.path.join(a.out, "run.json"), run)
        print(f"saved {size} bytes of weights at step {self.step}, {self.elapsed():.0f} s; batches' checksum {self.crc:08x}", flush=True)

    def evaluate(self):
        """What was written, read back.  Ends in time, with fewer videos if need be."""
        a = self.args
        if not a.eval_videos:
            return
        until = self.start + a.minutes * 60 - WRITING_S if not a.steps and not a.again else None
        self.optimizers.forget()
        model = Model(*checkpoint.load(os.path.join(a.out, "checkpoint")), self.device)
        figures, samples, asked = evaluate(model, self.words, a.eval_videos, a.eval_seed, until)
        print(table(figures), *samples, sep="\n")
        print(f"asked about {asked} of {a.eval_videos} videos", flush=True)
        write_json(os.path.join(a.out, "evaluation.json"), dict(figures=figures, samples=samples, videos=asked, seed=a.eval_seed, steps=self.step))


def write_json(path, value):
    with open(path + ".new", "w") as f:
        json.dump(value, f, indent=1)
    os.replace(path + ".new", path)


def arguments():
    on_gpu = torch.cuda.is_available()
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    ap.add_argument("--minutes", type=float, default=9, help="for everything, evaluation included")
    ap.add_argument("--reserve", type=float, default=65, help="seconds of them for checkpoint and evaluation")
    ap.add_argument("--steps", type=int, default=0, help="so many steps instead of a time")
    ap.add_argument("--again", help="run.json of the run to repeat")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--frames", type=int, default=640, help="of a batch")
    ap.add_argument("--questions", type=int, default=8, help="about each video")
    ap.add_argument("--rate", type=float, default=2e-3)
    ap.add_argument("--workers", type=int, default=12, help="processes that make batches")
    ap.add_argument("--device", default="cuda" if on_gpu else "cpu")
    ap.add_argument("--compile", action=argparse.BooleanOptionalAction, default=on_gpu)
    ap.add_argument("--every", type=int, default=100, help="steps between two lines of the log")
    ap.add_argument("--eval-videos", type=int, default=300, help="0: none")
    ap.add_argument("--eval-seed", type=int, default=777)
    return ap.parse_args()


def main():
    start = time.monotonic()
    args = arguments()
    os.makedirs(args.out, exist_ok=True)
    run = Run(args, start)
    total = sum(t.numel() for t in run.model.tensors.values())
    print(f"{total} parameters, {total * 2 / 1e6:.2f} MB in bf16, vocabulary {run.words.size}", flush=True)
    run.train()
    run.save()
    run.evaluate()
    print(f"done in {run.elapsed():.0f} s", flush=True)
    sys.stdout.flush()
    os._exit(0)                                     # the processes that make batches never end by themselves


if __name__ == "__main__":
    main()
