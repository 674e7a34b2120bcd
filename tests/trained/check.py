#!/usr/bin/env python3
"""Holds this package's own parts against the oracle and against themselves, in f32 on a CPU; exit status 1 if one is off.

    check.py [CHECKPOINT]       without one: a fresh model's, untrained

Each boundary of the forward pass against tests/oracle/vidi_oracle.py; greedy answers, token by token; the log-mel windows; the
tokenizer; the same batch twice from one seed; one step of training, which moves every tensor that the forward pass reads.
"""
import argparse
import random
import tempfile

import numpy as np
import torch

import checkpoint
import schedule
from batches import Batches, collate
from encode import Encoder
from evaluate import generate
from initial import DIMS, initial_weights
from losses import Losses, Probes
from model import CELLS, Model
from optimizer import Optimizers
from pictures import Frames, Painter
from questions import Question, draw_questions
from reference import vo
from scenes import draw_scene
from sound import LogMel, play
from words import TIMES, Words

TOLERANCE = 2e-4                                    # of the largest value of a boundary
SECONDS = (3, 33)                                   # one and two windows of sound


def off(name, ours, theirs, limit=TOLERANCE):
    """Prints and judges the largest difference, as a share of the oracle's largest value -> True if it is too large"""
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"{name:16s} {error:.1e} of {limit:.0e}{'' if error <= limit else '  OFF'}")
    return not error <= limit


def inputs(words, seconds):
    """A scene's frames as a file has them, uint8, and its samples."""
    rng = random.Random(seconds)
    scene = draw_scene(rng, max(8, seconds))
    batch = collate(words, [scene], [draw_questions(rng, scene, 1)])
    generator = torch.Generator().manual_seed(seconds)
    pixels = Painter().pixels(batch, Frames(batch), generator)[:seconds]
    frames = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    batch["voices"][:, 6] = 1.0
    pcm = play(batch, generator)[0][0, :seconds * vo.SR].numpy() + 0.0
    pcm[:vo.SR // 2] += np.round(0.1 * 32768 * np.sin(np.arange(vo.SR // 2) / 5)).astype(np.float32) / 32768
    return frames, pcm


@torch.no_grad()
def forward(directory, words):
    """The number of boundaries that are off."""
    model, oracle, bad = Model(*checkpoint.load(directory)), vo.Oracle(directory, "float32", "ideal"), 0
    for seconds in SECONDS:
        frames, pcm = inputs(words, seconds)
        query = "a red circle"
        rec, info = oracle.run(frames, pcm, query, max_new=12)
        mel = LogMel("cpu")(torch.from_numpy(pcm)[None])[0]
        pixels = vo.preprocess_frames(frames, 384)
        features = model.vision(pixels)
        image = model.image_tokens(features, torch.arange(seconds), seconds)
        states = model.audio(mel)
        audio = model.audio_tokens(states.flatten(0, 1)[None], info["audio_tokens"])
        scale = DIMS["hidden"] ** 0.5
        media = dict(image=model.media(image.flatten(0, 1), 1, seconds * CELLS ** 2), audio=model.media(audio[0], 1, info["audio_tokens"]))
        ids = torch.tensor([info["text_token_ids"] + info["generated_token_ids"][:-1]])
        logits = model.logits(model.text(ids, media, torch.ones(1))[0])[0]
        bad += off("mel", mel, rec["mel"]) + off("vision", features, rec["vision_features"]) + off("audio", states, rec["audio_features"])
        bad += off("image tokens", image.flatten(0, 1) / scale, rec["image_tokens"]) + off("audio tokens", audio[0] / scale, rec["audio_tokens"])
        bad += off("prompt logits", logits[:info["text_len"]], rec["prefill_logits_all"])
        bad += off("answer logits", logits[info["text_len"] - 1:], rec["step_logits"])
        prompt = words.prompt(vo.GEMMA2.question(query))
        said = generate(model, [prompt], media, torch.ones(1), limit=12)[0]
        same = prompt == info["text_token_ids"] and said == info["generated_token_ids"]
        print(f"{seconds} s: {words.decode(said)!r}, {'the same tokens' if same else 'OTHER TOKENS: ' + info['text']}")
        bad += not same
    return bad


def tokens(words):
    """Every time is one token, and answers come back as they went in."""
    said = ["none", "0.12-0.34, 0.56-0.78", "1.00-0.00", "a beep", "yes", "3"]
    lost = [t for t in said + TIMES if words.decode(words.answer(t) + [vo.GEMMA2.end_token]) != t]
    print(f"tokenizer        {words.size} tokens, {len(lost)} texts lost")
    return len(lost)


def repeats():
    """One seed, one batch."""
    one, other, third = (Batches(seed, 32, 4)[7, 2] for seed in (1, 1, 2))
    same = one["crc"] == other["crc"] and all(torch.equal(one[k], other[k]) for k in one if torch.is_tensor(one[k]))
    print(f"batches          {'the same' if same else 'NOT THE SAME'} from one seed, {'others' if one['crc'] != third['crc'] else 'NONE OTHER'} from another")
    return int(not same or one["crc"] == third["crc"])


def one_step(words):
    """The number of tensors that a step leaves as they are although the forward pass reads them."""
    model = Model(initial_weights(DIMS, words.size, 1), DIMS)
    before = {n: t.detach().clone() for n, t in model.tensors.items()}
    probes = Probes(DIMS)
    losses = Losses(model, Encoder(model, 1), probes, words.times)
    optimizers = Optimizers(model.trained(), probes.parameters(), 2e-3)
    rng = random.Random(3)
    scene = next(s for s in iter(lambda: draw_scene(rng, 8), None) if s.sounds)
    asked = [Question("Is there a sound?", "yes")] + draw_questions(rng, scene, 7)
    loss, _ = losses(collate(words, [scene], [asked]), schedule.weights(0.3))
    loss.backward()
    optimizers.step(1.0)
    still = [n for n in model.trained() if torch.equal(before[n], model.tensors[n])]
    moved = [n for n in model.tensors if n not in model.trained() and not torch.equal(before[n], model.tensors[n])]
    print(f"one step         loss {float(loss.detach()):.3f}; {len(model.trained())} tensors, still: {still or 'none'}, moved that are unused: {moved or 'none'}")
    return len(still) + len(moved) + int(not torch.isfinite(loss))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", nargs="?")
    a = ap.parse_args()
    words = Words()
    with tempfile.TemporaryDirectory() as made:
        if not a.checkpoint:
            checkpoint.save(made + "/fresh", initial_weights(DIMS, words.size, 1), DIMS, words)
        bad = tokens(words) + repeats() + one_step(words) + forward(a.checkpoint or made + "/fresh", words)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
