"""What training minimizes: the answers' tokens, with soft targets for times; and, fading out, what each patch and each moment
of sound shows, and where one head of the language model looks as it names a time."""
import torch
import torch.nn.functional as F
from torch import nn

from batches import ENVELOPE_HZ
from model import CELLS
from pictures import GRID, KINDS, patch_labels, presence
from scenes import COLOUR_NAMES, SHAPE_NAMES, SOUND_NAMES

GUIDED_LAYER = 3                                    # its first head, of both modalities
STATE_HZ = 50                                       # audio states a second
EMPTY_PATCH = 0.15                                  # weight of a patch without a thing
PICKED_PATCHES = 6
NEAR = 5                                            # audio tokens that count as the right one


class Probes(nn.Module):
    """Linear readings of the towers' outputs; only for training, never exported."""

    def __init__(self, dims):
        super().__init__()
        self.patch = nn.Linear(dims["v_hidden"], len(COLOUR_NAMES) + 1 + len(SHAPE_NAMES) + 1)
        self.frame = nn.Linear(dims["v_hidden"], KINDS)
        self.anywhere = nn.Linear(dims["v_hidden"], KINDS)
        self.sound = nn.Linear(dims["a_hidden"], len(SOUND_NAMES))


class Answers:
    """Cross-entropy of the answers' tokens; a time's target is a bell over neighbouring times, `sigma` hundredths wide."""

    def __init__(self, time_ids, device):
        self.time_ids = torch.tensor(time_ids, device=device)

    def __call__(self, logits, targets, sigma):
        """logits [n,V], targets [n] -> (loss, figures for the log)"""
        logs = torch.log_softmax(logits, -1)
        hard = -logs.gather(1, targets[:, None])[:, 0]
        same = targets[:, None] == self.time_ids[None]
        is_time, place = same.any(1), same.float().argmax(1)
        bell = torch.exp(-0.5 * ((torch.arange(len(self.time_ids), device=targets.device)[None] - place[:, None]) / sigma) ** 2)
        bell = bell / bell.sum(1, keepdim=True)
        soft = -(logs[:, self.time_ids] * bell).sum(1)
        with torch.no_grad():
            right = (logits.argmax(1) == targets)[~is_time].float().mean()
            off = (logits[:, self.time_ids].argmax(1) - place).abs().float()[is_time].mean()
        return torch.where(is_time, soft, hard).mean(), dict(word=right, off=off, hard=hard.mean())


def picture_loss(probes, batch, encoded, generator):
    """What patches, whole frames, and single patches of a frame say of its things -> dict of losses"""
    frames, n = encoded.frames, encoded.frames.real
    features, colours = encoded.features[:n], len(COLOUR_NAMES) + 1
    labels, present = patch_labels(batch, frames)[:n], presence(batch, frames)[:n]
    said = probes.patch(features).float()
    colour, shape = labels[..., 0].reshape(-1), labels[..., 1].reshape(-1)
    weight = torch.where(colour > 0, 1.0, EMPTY_PATCH)
    patch = F.cross_entropy(said[..., :colours].flatten(0, 1), colour, reduction="none") \
        + F.cross_entropy(said[..., colours:].flatten(0, 1), shape, reduction="none")
    picked = torch.randint(0, GRID * GRID, (PICKED_PATCHES,), device=features.device, generator=generator)
    return dict(patch=(patch * weight).sum() / weight.sum(),
                frame=F.binary_cross_entropy_with_logits(probes.frame(features.mean(1)).float(), present),
                anywhere=F.binary_cross_entropy_with_logits(probes.anywhere(features[:, picked]).float(),
                                                            present[:, None].expand(-1, PICKED_PATCHES, -1)))


def sound_loss(probes, batch, encoded):
    """Which sounds are heard at each state of the audio tower."""
    F_ = batch["duration"]
    heard = batch["envelopes"][:, :, :F_ * ENVELOPE_HZ].unflatten(-1, (-1, ENVELOPE_HZ // STATE_HZ)).mean(-1).transpose(1, 2)
    heard = heard * batch["voices"][:, 6, None, None]
    return F.binary_cross_entropy_with_logits(probes.sound(encoded.states[:, :F_ * STATE_HZ]).float(), heard)


def guide_loss(batch, encoded, seen):
    """-log of the weight that the guided head gives to the frame (or the moments of sound) that the next token names."""
    B, losses = batch["videos"], {}
    for name, key, per in (("image", "look", CELLS * CELLS), ("audio", "listen", 1)):
        at = batch[key].reshape(B, -1)
        counts = at >= 0
        mass = seen[name].unflatten(-1, (-1, per)).sum(-1)
        if name == "audio":
            counts = counts & (encoded.audible[:, None] > 0)
            mass = F.avg_pool1d(mass, NEAR, 1, NEAR // 2) * NEAR
        mass = mass.gather(2, at.clamp(min=0)[..., None])[..., 0]
        losses[name] = (-torch.log(mass + 1e-5) * counts).sum() / counts.sum().clamp(min=1)
    return losses


class Losses:
    """The whole forward pass of a batch, to one number and figures for the log."""

    def __init__(self, model, encoder, probes, time_ids):
        self.model, self.encoder, self.probes = model, encoder, probes
        self.answers = Answers(time_ids, model.device)

    def __call__(self, batch, weights):
        """weights: schedule.Weights"""
        encoded = self.encoder(batch)
        hidden, seen = self.model.text(batch["ids"], encoded.media, encoded.audible, GUIDED_LAYER if weights.guide > 0 else None)
        asked = batch["targets"] >= 0
        loss, figures = self.answers(self.model.logits(hidden[asked]), batch["targets"][asked], weights.sigma)
        figures["answer"] = loss.detach()
        picture = picture_loss(self.probes, batch, encoded, self.encoder.generator)
        heard = sound_loss(self.probes, batch, encoded)
        loss = loss + weights.probes * (picture["patch"] + 4 * picture["frame"] + 4 * picture["anywhere"] + 2 * heard)
        figures.update({k: v.detach() for k, v in picture.items()}, sound=heard.detach())
        if weights.guide > 0:
            guides = guide_loss(batch, encoded, seen)
            loss = loss + weights.guide * sum(guides.values())
            figures.update({f"guide_{k}": v.detach() for k, v in guides.items()})
        figures["loss"] = loss.detach()
        return loss, figures
