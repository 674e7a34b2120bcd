"""What changes as training goes on, as functions of its progress from 0 to 1: by the clock, by steps, or as an earlier run had it."""
import math
import time
from dataclasses import dataclass

WARMUP_STEPS = 100
STEPS_OF_COMPILATION = 3                            # progress counts from there on
LEVEL_STARTS = [0.0, 0.08, 0.25]
FULL_RATE_UNTIL = 0.35
LAST_RATE = 0.02


@dataclass
class Weights:
    """Of the losses: auxiliary readings, guided head (0: not computed), and the width of a time's soft target in hundredths."""
    probes: float
    guide: float
    sigma: float


def weights(progress):
    """Guide and width end at 60 %, the readings fade to a twentieth at 70 %."""
    return Weights(0.5 * max(0.05, 1 - progress / 0.7), 0.15 * max(0.0, 1 - progress / 0.6), 0.55 + 1.5 * max(0.0, 1 - progress / 0.6))


def level(progress):
    """The level of scenes.draw_scene."""
    return sum(progress >= start for start in LEVEL_STARTS) - 1


def rate(progress, step):
    """Factor of the learning rate: linear warm-up, full, then half a cosine."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    if progress < FULL_RATE_UNTIL:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (progress - FULL_RATE_UNTIL) / (1 - FULL_RATE_UNTIL)))
    return warm * (LAST_RATE + (1 - LAST_RATE) * fall)


class ByClock:
    """Ends `seconds` after `start` (time.monotonic); the first steps, which compile, count as no progress."""

    def __init__(self, start, seconds):
        self.start, self.seconds, self.first = start, seconds, None

    def progress(self, step):
        """Progress before this step; None when training ends."""
        now = time.monotonic() - self.start
        if now > self.seconds:
            return None
        if self.first is None:
            if step < STEPS_OF_COMPILATION:
                return 0.0
            self.first = now
        return (now - self.first) / (self.seconds - self.first)


class BySteps:
    """Ends after `steps` steps."""

    def __init__(self, steps):
        self.steps = steps

    def progress(self, step):
        return step / self.steps if step < self.steps else None


class Again:
    """The progress of each step of an earlier run."""

    def __init__(self, recorded):
        self.recorded = recorded

    def progress(self, step):
        return self.recorded[step] if step < len(self.recorded) else None
