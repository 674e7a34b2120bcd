"""A batch of scenes, painted, played, and passed through both towers and the adapters: what all its questions share."""
from dataclasses import dataclass

import torch

from batches import AUDIO_HZ, SEED_STEP
from model import CELLS
from pictures import Frames, Painter
from sound import LogMel, play


@dataclass
class Encoded:
    """media: {"image" or "audio": per layer (keys, values)}; audible [B]; features [N,729,V] of `frames`, states [B,T,A]."""
    media: dict
    audible: torch.Tensor
    frames: Frames
    features: torch.Tensor
    states: torch.Tensor


class Encoder:
    """Pads every batch to `padded` frames (0: not at all), so that compiled functions see one size.  The grain of pictures and
    sounds comes from (seed, the batch's index)."""

    def __init__(self, model, seed, padded=0, painter=None):
        self.model, self.seed, self.padded = model, seed, padded
        self.painter = painter or Painter()
        self.log_mel = LogMel(model.device)
        self.generator = torch.Generator(model.device)

    def __call__(self, batch):
        model, B, F = self.model, batch["videos"], batch["duration"]
        self.generator.manual_seed(self.seed * SEED_STEP + batch["index"])
        frames = Frames(batch, self.padded)
        with torch.autocast(model.device.type, enabled=False):
            pixels = self.painter.pixels(batch, frames, self.generator)
            pcm, audible = play(batch, self.generator)
            mel = self.log_mel(pcm)
        features = model.vision(pixels)
        image = model.image_tokens(features, frames.second, F)
        states = model.audio(mel.flatten(0, 1)).unflatten(0, (B, -1)).flatten(1, 2)
        audio = model.audio_tokens(states, F * AUDIO_HZ)
        media = dict(image=model.media(image.flatten(0, 1), B, F * CELLS * CELLS), audio=model.media(audio.flatten(0, 1), B, F * AUDIO_HZ))
        return Encoded(media, audible, frames, features, states)
