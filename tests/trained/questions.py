"""Questions about a scene, with their true answers.

An answer is a list of time ranges in hundredths of the video ("0.12-0.34, 0.56-0.78"), "none", or a word or two.
"""
from dataclasses import dataclass
from typing import Optional

from scenes import COLOUR_NAMES, SHAPE_NAMES, SOUND_NAMES, union

RETRIEVAL = "During which time segments in the video can we see "     # the task's prompt in tasks.toml
MOST_SEGMENTS = 3


@dataclass
class Question:
    """text and answer as the model reads and writes them.  sense: "seen" or "heard" for a thing that is there, else None.
    segments: its intervals in seconds; [] for what is not there, None for a question whose answer is no time."""
    text: str
    answer: str
    sense: Optional[str] = None
    segments: Optional[list] = None

    @property
    def kind(self):
        """"times", "absent" or "qa"."""
        return "qa" if self.segments is None else "times" if self.segments else "absent"

    def task(self):
        """(task, query) of `vidi ask`."""
        if self.text.startswith(RETRIEVAL):
            return "retrieval", self.text[len(RETRIEVAL):-1]
        return "qa", self.text


def spell(segments, duration):
    """The answer that names these intervals."""
    return ", ".join(f"{a / duration:.2f}-{b / duration:.2f}" for a, b in segments) if segments else "none"


def when(what, scene, sense, segments):
    """The question during which segments `what` can be seen; None if its answer would be too long."""
    if len(segments) > MOST_SEGMENTS:
        return None
    return Question(f"{RETRIEVAL}{what}?", spell(segments, scene.duration), sense if segments else None, segments)


def when_thing(rng, scene):
    t = rng.choice(scene.things)
    article = rng.choice(["a ", "a ", "the ", ""])
    return when(f"{article}{COLOUR_NAMES[t.colour]} {SHAPE_NAMES[t.shape]}", scene, "seen", t.seen)


def when_shape(rng, scene):
    shape = rng.choice(scene.things).shape
    seen = union([s for t in scene.things if t.shape == shape for s in t.seen])
    return when(f"a {SHAPE_NAMES[shape]}", scene, "seen", seen)


def when_colour(rng, scene):
    colour = rng.choice(scene.things).colour
    seen = union([s for t in scene.things if t.colour == colour for s in t.seen])
    return when(f"something {COLOUR_NAMES[colour]}", scene, "seen", seen)


def when_sound(rng, scene):
    if not scene.sounds:
        return None
    k = rng.choice(list(scene.sounds))
    return when(SOUND_NAMES[k], scene, "heard", scene.sounds[k])


def near_kind(rng, scene, share):
    """A (colour, shape) that may be there or not; with chance `share` one that has something in common with the first thing."""
    colour, shape = rng.randrange(len(COLOUR_NAMES)), rng.randrange(len(SHAPE_NAMES))
    if rng.random() < share:
        first = scene.things[0]
        return rng.choice([(first.colour, shape), (colour, first.shape)])
    return colour, shape


def there(scene, kind):
    return any((t.colour, t.shape) == kind for t in scene.things)


def when_absent_thing(rng, scene):
    kind = near_kind(rng, scene, 0.6)
    return None if there(scene, kind) else when(f"a {COLOUR_NAMES[kind[0]]} {SHAPE_NAMES[kind[1]]}", scene, None, [])


def when_absent_sound(rng, scene):
    k = rng.randrange(len(SOUND_NAMES))
    return None if k in scene.sounds else when(SOUND_NAMES[k], scene, None, [])


def which_colour(rng, scene):
    t = rng.choice(scene.things)
    if sum(o.shape == t.shape for o in scene.things) > 1:
        return None
    return Question(f"What {rng.choice(['colour', 'color'])} is the {SHAPE_NAMES[t.shape]}?", COLOUR_NAMES[t.colour])


def which_shape(rng, scene):
    t = rng.choice(scene.things)
    if sum(o.colour == t.colour for o in scene.things) > 1:
        return None
    return Question(f"What shape is the {COLOUR_NAMES[t.colour]} object?", SHAPE_NAMES[t.shape])


def is_there(rng, scene):
    if rng.random() < 0.5:
        t = rng.choice(scene.things)
        kind = t.colour, t.shape
    else:
        kind = near_kind(rng, scene, 0.6)
    return Question(f"Is there a {COLOUR_NAMES[kind[0]]} {SHAPE_NAMES[kind[1]]}?", "yes" if there(scene, kind) else "no")


def which_sound(_, scene):
    if len(scene.sounds) > 1:
        return None
    return Question("What sound is heard?", SOUND_NAMES[next(iter(scene.sounds))] if scene.sounds else "none")


def how_many(_, scene):
    return Question("How many objects are there?", str(len(scene.things)))


# What is asked, and how often.
MIX = {when_thing: 0.40, when_shape: 0.08, when_colour: 0.06, when_sound: 0.16, when_absent_thing: 0.07, when_absent_sound: 0.02,
       which_colour: 0.07, which_shape: 0.05, is_there: 0.04, which_sound: 0.03, how_many: 0.02}


def draw_questions(rng, scene, n):
    """n questions, different ones as far as the scene has them within 60 draws."""
    makers, weights = list(MIX), list(MIX.values())
    out, texts = [], set()
    for attempt in range(400):
        question = rng.choices(makers, weights)[0](rng, scene)
        if question is None or question.text in texts and attempt < 60:
            continue
        out.append(question)
        texts.add(question.text)
        if len(out) == n:
            break
    return out
