"""Scenes with their truth: coloured shapes that come and go, and sounds.  Plain Python, every draw from one random.Random.

A scene says everything about a video except its grain: pictures.py paints it, sound.py plays it, questions.py asks about it.
Positions and sizes are in the model's own square of 384 x 384, into which a video of any aspect is squashed; times are seconds.
"""
import math
from dataclasses import asdict, dataclass, field

SIDE = 384
COLOURS = {"red": (225, 35, 35), "green": (35, 170, 55), "blue": (40, 70, 230), "yellow": (235, 215, 40),
           "purple": (150, 45, 180), "white": (245, 245, 245)}
PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "purple": (150, 0, 180),
        "white": (255, 255, 255)}
COLOUR_NAMES = list(COLOURS)
SHAPE_NAMES = ["circle", "square", "triangle", "cross"]
SOUND_NAMES = ["a beep", "a hum", "noise"]
ASPECTS = [1.0, 0.75, 0.5625]                       # height / width
MOST_THINGS = 4
LEVELS = 3                                          # 0: few things, one segment each; 2: everything


@dataclass
class Thing:
    """A shape.  Its centre sways by `sway` along `heading`; `seen`: intervals [from, to) in whole seconds."""
    colour: int
    shape: int
    shade: tuple                                    # the colour as painted, red, green and blue in 0..1
    cx: float
    cy: float
    rx: float
    ry: float
    sway: float
    phase: float
    speed: float
    heading: float
    turn: float
    seen: list

    def reach(self):
        """Half width and half height of all that it may cover."""
        return self.rx + self.sway, self.ry + self.sway


@dataclass
class Backdrop:
    """Two colours and the direction between them, a wave, blotches (`texture`), and grain that changes with each frame."""
    first: tuple
    second: tuple
    direction: float
    wave: tuple                                     # radians per pixel along x and y
    wave_height: float
    texture: float
    grain: float


@dataclass
class Voice:
    """How the sounds sound: pitches in Hz, loudness of each, noise under everything (0: none), and the sound track's gain."""
    beep_hz: float
    hum_hz: float
    beep: float
    hum: float
    noise: float
    floor: float
    gain: float


@dataclass
class Scene:
    """One video.  sounds: {index in SOUND_NAMES: intervals in seconds, in tenths}."""
    duration: int
    aspect: float
    things: list
    backdrop: Backdrop
    voice: Voice
    sounds: dict = field(default_factory=dict)

    def truth(self):
        """What there is to see and to hear and when, for people and for JSON."""
        return dict(duration=self.duration, aspect=self.aspect,
                    objects=[dict(colour=COLOUR_NAMES[t.colour], shape=SHAPE_NAMES[t.shape], seen=t.seen) for t in self.things],
                    sounds={SOUND_NAMES[k]: when for k, when in self.sounds.items()})

    def as_dict(self):
        """Everything, for JSON."""
        return asdict(self)


def union(segments):
    """Overlapping and touching intervals joined, in order."""
    out = []
    for a, b in sorted(segments):
        if out and a <= out[-1][1]:
            out[-1][1] = max(out[-1][1], b)
        else:
            out.append([a, b])
    return [tuple(s) for s in out]


def draw_segments(rng, n, whole, least):
    """n intervals (fewer if they do not fit) in whole steps of [0, whole], each and each gap at least `least` long."""
    for _ in range(50):
        cut = sorted(rng.sample(range(whole + 1), 2 * n)) if whole + 1 >= 2 * n else []
        if cut and all(b - a >= least for a, b in zip(cut, cut[1:])) and cut[1] - cut[0] < whole:
            return [(cut[2 * i], cut[2 * i + 1]) for i in range(n)]
    return draw_segments(rng, n - 1, whole, least) if n > 1 else [(0, max(least, whole // 2))]


def draw_kinds(rng, n):
    """n different (colour, shape); half the time the first two share one of both, so that the other one decides."""
    kinds = rng.sample([(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPE_NAMES))], n)
    if n > 1 and rng.random() < 0.5:
        colour, shape = kinds[0]
        if rng.random() < 0.5:
            other = colour, rng.choice([s for s in range(len(SHAPE_NAMES)) if s != shape])
        else:
            other = rng.choice([c for c in range(len(COLOURS)) if c != colour]), shape
        if other not in kinds:
            kinds[1] = other
    return kinds


def draw_shade(rng, colour):
    """A colour near the named one, or near the pure one."""
    name = COLOUR_NAMES[colour]
    base = COLOURS[name]
    if rng.random() < 0.3:
        base = PURE[name]
        if name == "green" and rng.random() < 0.5:
            base = (0, 160, 0)
    return tuple(min(1.0, max(0.0, (v + rng.gauss(0, 10)) / 255)) for v in base)


def draw_thing(rng, kind, aspect, others, duration, level):
    """A thing that never touches the others; None if there is no place."""
    for attempt in range(40):
        ry = rng.uniform(34, 76) * 0.98 ** attempt
        rx = max(18, ry * aspect)
        sway = rng.uniform(0, 28) if rng.random() < 0.5 else 0.0
        ex, ey = rx + sway, ry + sway
        cx, cy = rng.uniform(ex + 4, SIDE - ex - 4), rng.uniform(ey + 4, SIDE - ey - 4)
        if all(abs(cx - o.cx) > ex + o.reach()[0] + 4 or abs(cy - o.cy) > ey + o.reach()[1] + 4 for o in others):
            break
    else:
        return None
    n = 1 if level == 0 or rng.random() < 0.6 else (2 if level == 1 or rng.random() < 0.8 else 3)
    least = max(1, math.ceil(0.05 * duration))
    return Thing(kind[0], kind[1], draw_shade(rng, kind[0]), cx, cy, rx, ry, sway, rng.uniform(0, 6.28), rng.uniform(0.1, 0.6),
                 rng.uniform(0, 6.28), rng.uniform(-0.25, 0.25), draw_segments(rng, n, duration, least))


def draw_things(rng, aspect, duration, level):
    """1 to 2, 3 or 4 things by level."""
    things = []
    for kind in draw_kinds(rng, rng.randint(1, min(MOST_THINGS, 2 + level))):
        thing = draw_thing(rng, kind, aspect, things, duration, level)
        if thing:
            things.append(thing)
    return things


def draw_sounds(rng, duration, level):
    """{sound: intervals}; empty in 15 % of the scenes."""
    sounds = {}
    if rng.random() < 0.85:
        for k in rng.sample(range(len(SOUND_NAMES)), rng.choice([1, 1, 1, 2] if level else [1])):
            n = 1 if level == 0 or rng.random() < 0.65 else 2
            tenths = draw_segments(rng, n, duration * 10, max(4, int(0.04 * duration * 10)))
            sounds[k] = [(a / 10, b / 10) for a, b in tenths]
    return sounds


def draw_backdrop(rng):
    """Darker than most things; one colour in 30 %."""
    tint = rng.uniform(0, 0.22)

    def colour():
        grey = rng.uniform(0.02, 0.55)
        return tuple(min(0.65, max(0.0, grey + rng.uniform(-0.5, 0.5) * tint)) for _ in range(3))

    first = colour()
    second = first if rng.random() < 0.3 else colour()
    return Backdrop(first, second, rng.uniform(0, 6.28), (rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)),
                    rng.uniform(0, 0.10) if rng.random() < 0.3 else 0.0, rng.uniform(0, 0.11) if rng.random() < 0.4 else 0.0,
                    rng.uniform(0, 0.08) if rng.random() < 0.5 else 0.0)


def draw_voice(rng, audible):
    """gain 0 (no sound track at all) only where nothing is to be heard."""
    floor = 0.0 if rng.random() < 0.4 else 10 ** rng.uniform(-4.5, -2.3)
    return Voice(rng.uniform(800, 1250), rng.uniform(110, 260), rng.uniform(0.08, 0.6), rng.uniform(0.15, 0.6),
                 rng.uniform(0.05, 0.4), floor, 1.0 if audible or rng.random() < 0.5 else 0.0)


def draw_scene(rng, duration, level=LEVELS - 1, aspect=None):
    """A scene of `duration` whole seconds with at least one thing.  aspect: one of ASPECTS, or drawn."""
    drawn = rng.choice([1.0, 1.0, 0.75, 0.75, 0.5625, 0.5625, 0.5625])
    aspect = drawn if aspect is None else aspect
    things = []
    while not things:
        things = draw_things(rng, aspect, duration, level)
    sounds = draw_sounds(rng, duration, level)
    return Scene(duration, aspect, things, draw_backdrop(rng), draw_voice(rng, bool(sounds)), sounds)
