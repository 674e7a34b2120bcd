#!/usr/bin/env python3
"""Makes video files of scenes, H.264 and AAC by ffmpeg, each with its truth and with questions as JSON beside it.

    make_videos.py DIR [--videos 24] [--questions 8] [--seed 4242] [--rate 4]
    make_videos.py DIR --painted            # no ffmpeg: frames.npy and pcm.npy of each, one frame a second, as no codec has changed them

The same arguments make the same scenes, questions and samples.  A scene without a sound track is a file without one.
"""
import argparse
import json
import os
import random
import subprocess
import tempfile
import wave

import numpy as np
import torch

import pictures
from batches import collate
from questions import draw_questions
from reference import vo
from scenes import SIDE, draw_scene
from sound import play
from words import Words

SHORTEST, LONGEST = 10, 60
SIZES = {0.5625: (480, 270), 0.75: (400, 300), 1.0: (320, 320)}
AT_ONCE = 32


def paint(batch, rate, width, height, generator):
    """Yields uint8 [n,h,w,3]: `rate` frames a second, of any size; motion is smooth, what is there changes at whole seconds."""
    X, Y = ((torch.arange(n) + 0.5) * (SIDE / n) for n in (width, height))
    side = pictures.TEXTURE_SIDE
    texture = torch.nn.functional.interpolate(torch.randn(1, 3, side, side, generator=generator), size=(height, width), mode="bilinear")
    moments = torch.arange(batch["duration"] * rate).split(AT_ONCE)
    for moment in moments:
        n = len(moment)
        things = pictures.placed(batch["things"].expand(n, -1, -1), moment / rate)
        shown = batch["shown"][0, :, moment // rate].T * things[..., 11]
        grain = torch.randn(n, 3, height, width, generator=generator)
        image = pictures.backdrop(batch["backdrops"].expand(n, -1), X, Y, texture, grain)
        image = pictures.paint(image, X, Y, things, batch["shades"].expand(n, -1, -1), shown)
        yield (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def write_wave(path, samples):
    with wave.open(path, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(vo.SR)
        f.writeframes(samples.tobytes())


def encode(path, frames, samples, rate, width, height):
    """One file.  samples: int16, or None for no sound track"""
    with tempfile.TemporaryDirectory() as made:
        sound = []
        if samples is not None:
            write_wave(made + "/sound.wav", samples)
            sound = ["-i", made + "/sound.wav", "-c:a", "aac", "-b:a", "96k", "-ar", "44100"]
        command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-",
                   *sound, "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as ffmpeg:
            for some in frames:
                ffmpeg.stdin.write(some.tobytes())
            ffmpeg.stdin.close()
            if ffmpeg.wait():
                raise SystemExit(f"ffmpeg: exit status {ffmpeg.returncode} for {path}")


def write_arrays(directory, frames, samples):
    """What stage-decode would deliver: `frames.npy` and `pcm.npy`."""
    os.makedirs(directory, exist_ok=True)
    np.save(os.path.join(directory, "frames.npy"), np.concatenate(list(frames)))
    if samples is not None:
        np.save(os.path.join(directory, "pcm.npy"), samples)


def make(directory, name, seed, questions, rate, words):
    """One video and its truth.  rate: None for painted arrays"""
    rng, generator = random.Random(f"{seed} {name}"), torch.Generator()
    generator.manual_seed(rng.getrandbits(48))
    scene = draw_scene(rng, rng.randint(SHORTEST, LONGEST))
    asked = draw_questions(rng, scene, questions)
    batch = collate(words, [scene], [asked])
    samples = (play(batch, generator)[0][0] * 32768).to(torch.int16).numpy() if scene.voice.gain else None
    width, height = SIZES[scene.aspect] if rate else (SIDE, SIDE)
    frames = paint(batch, rate or 1, width, height, generator)
    if rate:
        file = f"{name}.mp4"
        encode(os.path.join(directory, file), frames, samples, rate, width, height)
    else:
        file = name
        write_arrays(os.path.join(directory, file), frames, samples)
    told = [dict(zip(("task", "query"), q.task()), answer=q.answer, sense=q.sense, segments=q.segments) for q in asked]
    with open(os.path.join(directory, f"{name}.json"), "w") as f:
        json.dump(dict(file=file, seed=seed, **scene.truth(), questions=told), f, indent=1)
    return scene.duration


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("directory")
    ap.add_argument("--videos", type=int, default=24)
    ap.add_argument("--questions", type=int, default=8)
    ap.add_argument("--seed", type=int, default=4242)
    ap.add_argument("--rate", type=int, default=4, help="frames a second of the files")
    ap.add_argument("--painted", action="store_true")
    a = ap.parse_args()
    os.makedirs(a.directory, exist_ok=True)
    words = Words()
    with torch.no_grad():
        seconds = [make(a.directory, f"{i:03d}", a.seed, a.questions, None if a.painted else a.rate, words) for i in range(a.videos)]
    print(f"{a.videos} videos of {min(seconds)} to {max(seconds)} s, {sum(seconds)} s together, {a.questions} questions about each")


if __name__ == "__main__":
    main()
