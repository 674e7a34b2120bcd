"""The training's log: means of the figures since the last line, with time, memory and milliseconds per step."""
import math
import time

import torch

EARLY = (1, 2, 5, 10, 20, 50)


class Log:
    def __init__(self, start, every, on_gpu):
        self.start, self.every, self.on_gpu = start, every, on_gpu
        self.clear()

    def clear(self):
        self.sums, self.steps, self.since = {}, 0, time.monotonic()

    def add(self, step, progress, figures):
        """Prints a line now and then; False if a mean is no number.  figures: {name: tensor of one value}"""
        for name, value in figures.items():
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value.detach().nan_to_num(0.0) if name != "loss" else total + value.detach(), n + 1
        self.steps += 1
        if step not in EARLY and step % self.every:
            return True
        means = {name: float(total) / n for name, (total, n) in self.sums.items()}
        now = time.monotonic()
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else 0.0
        print(f"{now - self.start:6.1f} s, {progress:4.0%}, step {step:5d}, {(now - self.since) / self.steps * 1000:4.0f} ms, {memory:.0f} GiB: "
              + " ".join(f"{name} {value:.3f}" for name, value in means.items()), flush=True)
        self.clear()
        return math.isfinite(means.get("loss", 0.0))
