"""Scenes and questions as tensors, and the loader that makes them in processes of their own.

A batch is a function of (seed, index, level) alone: which processes made it, and when, leaves no trace.
"""
import random
import zlib

import numpy as np
import torch

from questions import draw_questions
from reference import vo
from scenes import LEVELS, MOST_THINGS, SOUND_NAMES, draw_scene
from words import Words

# Seconds of a video, by level.
DURATIONS = [[8, 8, 9, 10, 11, 12],
             [8, 10, 12, 14, 16, 18, 20, 24, 28, 30, 32],
             [8, 9, 10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60, 64]]
ENVELOPE_HZ = 100                                   # steps a second in which sounds are switched on and off
AUDIO_HZ = 10                                       # audio tokens a second
SEED_STEP = 1_000_003
IGNORED = -100


def things_to_tensors(scenes):
    """things [B,T,12]: cx cy rx ry sway phase speed heading turn shape colour there; shades [B,T,3]; shown [B,T,F];
    kinds [B,T,2]: colour and shape, each from 1 on, 0 where there is no thing."""
    B, F = len(scenes), scenes[0].duration
    things, shades = np.zeros((B, MOST_THINGS, 12), np.float32), np.zeros((B, MOST_THINGS, 3), np.float32)
    shown, kinds = np.zeros((B, MOST_THINGS, F), np.float32), np.zeros((B, MOST_THINGS, 2), np.int64)
    for b, scene in enumerate(scenes):
        for i, t in enumerate(scene.things):
            things[b, i] = [t.cx, t.cy, t.rx, t.ry, t.sway, t.phase, t.speed, t.heading, t.turn, t.shape, t.colour, 1]
            shades[b, i] = t.shade
            kinds[b, i] = t.colour + 1, t.shape + 1
            for start, end in t.seen:
                shown[b, i, start:end] = 1
    return dict(things=things, shades=shades, shown=shown, kinds=kinds)


def backdrops_to_tensor(scenes):
    """[B,13]: first colour, second colour, direction (cos, sin), wave x, y, height, texture, grain."""
    rows = [[*s.backdrop.first, *s.backdrop.second, np.cos(s.backdrop.direction), np.sin(s.backdrop.direction), *s.backdrop.wave,
             s.backdrop.wave_height, s.backdrop.texture, s.backdrop.grain] for s in scenes]
    return dict(backdrops=np.array(rows, np.float32))


def sounds_to_tensors(scenes):
    """envelopes [B,3,F*100+1] in 0..1, voices [B,7] in the order of scenes.Voice."""
    envelopes = np.zeros((len(scenes), len(SOUND_NAMES), scenes[0].duration * ENVELOPE_HZ + 1), np.float32)
    for b, scene in enumerate(scenes):
        for k, segments in scene.sounds.items():
            for start, end in segments:
                envelopes[b, k, round(start * ENVELOPE_HZ):round(end * ENVELOPE_HZ)] = 1
    voices = [[s.voice.beep_hz, s.voice.hum_hz, s.voice.beep, s.voice.hum, s.voice.noise, s.voice.floor, s.voice.gain] for s in scenes]
    return dict(envelopes=envelopes, voices=np.array(voices, np.float32))


def guides(question, answer, words_times, duration):
    """[(place in the answer, frame or audio token)] for each time that the answer names: the first or last one that it covers."""
    found = []
    for place, token in enumerate(answer):
        if token in words_times:
            n = len(found)
            second, last = question.segments[n // 2][n % 2], n % 2
            at = int(second) - last if question.sense == "seen" else min(round(second * AUDIO_HZ) - last, duration * AUDIO_HZ - 1)
            found.append((place, at))
    return found


def texts_to_tensors(words, scenes, questions):
    """ids [B*Q,L] (padded with 0), targets [B*Q,L] (the next token where it is the answer's, else -100), look and listen
    [B*Q,L]: the frame or the audio token that decides the next token, else -1."""
    rows = [(words.prompt(q.text), words.answer(q.answer) + [vo.GEMMA2.end_token], q) for per_scene in questions for q in per_scene]
    length = (max(len(p) + len(a) - 1 for p, a, _ in rows) + 3) // 4 * 4
    ids, targets = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), IGNORED, np.int64)
    look, listen = np.full((len(rows), length), -1, np.int64), np.full((len(rows), length), -1, np.int64)
    times = set(words.times)
    for r, (prompt, answer, question) in enumerate(rows):
        whole, first = prompt + answer, len(prompt) - 1
        ids[r, :len(whole) - 1] = whole[:-1]
        targets[r, first:first + len(answer)] = answer
        if question.sense:
            to = look if question.sense == "seen" else listen
            for place, at in guides(question, answer, times, scenes[0].duration):
                to[r, first + place] = at
    return dict(ids=ids, targets=targets, look=look, listen=listen)


def collate(words, scenes, questions, index=0, blurred=False):
    """A batch: numbers and tensors.  All scenes have one duration, all of them the same number of questions."""
    arrays = {**things_to_tensors(scenes), **backdrops_to_tensor(scenes), **sounds_to_tensors(scenes), **texts_to_tensors(words, scenes, questions)}
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), crc)
    batch = dict(duration=scenes[0].duration, videos=len(scenes), questions=len(questions[0]), index=index, blurred=blurred, crc=crc)
    return {**batch, **{k: torch.from_numpy(v) for k, v in arrays.items()}}


def to_device(batch, device):
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


class Batches(torch.utils.data.Dataset):
    """batches[index, level]: about `frames` frames of videos of one duration, `questions` questions about each."""

    def __init__(self, seed, frames, questions):
        self.seed, self.frames, self.questions = seed, frames, questions
        self.words = Words()

    def __getitem__(self, key):
        index, level = key
        rng = random.Random(self.seed * SEED_STEP + index)
        duration = rng.choice(DURATIONS[level])
        videos = max(4, self.frames // duration)
        scenes = [draw_scene(rng, duration, level if rng.random() < 0.85 else max(0, level - 1)) for _ in range(videos)]
        questions = [draw_questions(rng, scene, self.questions) for scene in scenes]
        return collate(self.words, scenes, questions, index, rng.random() < 0.3)


class Order(torch.utils.data.Sampler):
    """(0, level), (1, level), ... with the level of the moment in which a batch is asked for, or those of an earlier run.
    starts: for each level the index of its first batch."""

    def __init__(self, level_now, starts=None):
        self.level_now, self.replayed = level_now, starts
        self.starts = [0]

    def __iter__(self):
        index = 0
        while True:
            level = self.level_now() if self.replayed is None else sum(index >= s for s in self.replayed) - 1
            while len(self.starts) <= level:
                self.starts.append(index)
            yield index, level
            index += 1


def one_thread(_):
    torch.set_num_threads(1)


def loader(batches, order, workers, pinned):
    """Batches in `order`, made by `workers` processes (0: by this one)."""
    more = dict(prefetch_factor=2, multiprocessing_context="fork", worker_init_fn=one_thread) if workers else {}
    return torch.utils.data.DataLoader(batches, batch_size=None, sampler=order, num_workers=workers, pin_memory=pinned, **more)


assert len(DURATIONS) == LEVELS
