"""Paints scenes on the device, in the model's own square or any other size, with labels for the patches.

A thing's outline is where d(x, y) = 0, in coordinates x, y that run from -1 to 1 over its size, turned by `turn`:
circle |(x,y)| - 1; square max(|x|,|y|) - 0.88; triangle max(0.88|x| - 0.475y - 0.475, y - 0.85); cross: two bars of 1 by 0.33.
"""
import torch
import torch.nn.functional as F

from scenes import COLOUR_NAMES, MOST_THINGS, SHAPE_NAMES, SIDE

PATCH, GRID = 14, 27
KINDS = len(COLOUR_NAMES) * len(SHAPE_NAMES)
TEXTURE_SIDE = 12


def coverage(X, Y, things):
    """How much of each pixel a thing covers, before it is shown or hidden.  X [w], Y [h], things [n,12] -> [n,h,w]"""
    def column(i):
        return things[:, i, None, None]

    dx, dy = X[None, None, :] - column(0), Y[None, :, None] - column(1)
    c, s = torch.cos(column(8)), torch.sin(column(8))
    rx, ry = column(2).clamp(min=1), column(3).clamp(min=1)
    x, y = dx / rx, dy / ry
    x, y = x * c + y * s, y * c - x * s
    ax, ay = x.abs(), y.abs()
    circle = torch.sqrt(x * x + y * y + 1e-6) - 1
    square = torch.maximum(ax, ay) - 0.88
    triangle = torch.maximum(ax * 0.88 - y * 0.475 - 0.475, y - 0.85)
    cross = torch.minimum(torch.maximum(ax - 1, ay - 0.33), torch.maximum(ax - 0.33, ay - 1))
    shape = column(9)
    d = torch.where(shape < 0.5, circle, torch.where(shape < 1.5, square, torch.where(shape < 2.5, triangle, cross)))
    return (0.5 - d * torch.minimum(rx, ry) * 0.7).clamp(0, 1)


def placed(things, second):
    """Things with their centres where they are in that second.  things [n,T,12], second [n]"""
    sway = things[..., 4] * torch.sin(things[..., 6] * second[:, None] + things[..., 5])
    things = things.clone()
    things[..., 0] = things[..., 0] + sway * torch.cos(things[..., 7])
    things[..., 1] = things[..., 1] + sway * torch.sin(things[..., 7])
    return things


def paint(image, X, Y, things, shades, shown):
    """Things over a picture.  image [n,3,h,w], things [n,T,12], shades [n,T,3], shown [n,T]"""
    for i in range(MOST_THINGS):
        alpha = (coverage(X, Y, things[:, i]) * shown[:, i, None, None])[:, None]
        image = image + alpha * (shades[:, i, :, None, None] - image)
    return image


def backdrop(rows, X, Y, texture, grain):
    """rows [n,13] of batches.backdrops_to_tensor, texture and grain [n,3,h,w] of unit variance -> [n,3,h,w]"""
    across = (X[None, None, :] * rows[:, 6, None, None] + Y[None, :, None] * rows[:, 7, None, None]) / SIDE
    wave = torch.sin(X[None, None, :] * rows[:, 8, None, None] + Y[None, :, None] * rows[:, 9, None, None]) * rows[:, 10, None, None]
    first, second = rows[:, 0:3, None, None], rows[:, 3:6]
    image = first + (second - rows[:, 0:3])[:, :, None, None] * across[:, None] + wave[:, None]
    return image + texture * rows[:, 11, None, None, None] + grain * rows[:, 12, None, None, None]


def to_pixels(image):
    """0..1 -> -1..1, through the 256 steps that a file has."""
    return (image.clamp(0, 1) * 255).round() * (2 / 255) - 1


class Painter:
    """Pictures of a batch, in `dtype`; compiled: faster, and only worth it for many batches of one size."""

    def __init__(self, dtype=torch.float32, compiled=False):
        self.dtype = dtype
        wrap = torch.compile if compiled else lambda f: f
        self.paint, self.backdrop, self.to_pixels = wrap(paint), wrap(backdrop), wrap(to_pixels)

    @torch.no_grad()
    def pixels(self, batch, frames, generator, step=64):
        """frames: Frames -> [N,3,384,384]"""
        device = batch["things"].device
        X = torch.arange(SIDE, device=device, dtype=torch.float32) + 0.5
        texture = torch.randn(batch["videos"], 3, TEXTURE_SIDE, TEXTURE_SIDE, device=device, generator=generator)[frames.video]
        rows, shades = batch["backdrops"][frames.video], batch["shades"][frames.video]
        out = torch.empty(len(rows), 3, SIDE, SIDE, device=device, dtype=self.dtype)
        for i in range(0, len(rows), step):
            s = slice(i, i + step)
            blotches = F.interpolate(texture[s], size=(SIDE, SIDE), mode="bilinear")
            grain = torch.randn(blotches.shape, device=device, generator=generator)
            image = self.paint(self.backdrop(rows[s], X, X, blotches, grain), X, X, frames.things[s], shades[s], frames.shown[s])
            if batch["blurred"]:
                image = F.interpolate(F.avg_pool2d(image, 2), size=(SIDE, SIDE), mode="bilinear")
            out[s] = self.to_pixels(image)
        return out


class Frames:
    """Which frame is which: video [N], second [N], things [N,T,12] where they are, shown [N,T].  padded: N at least, with
    copies of a first frame behind the real ones, so that a compiled model always sees one size."""

    def __init__(self, batch, padded=0):
        device, count = batch["things"].device, batch["duration"]
        self.real = batch["videos"] * count
        behind = max(0, padded - self.real)
        self.video = F.pad(torch.arange(batch["videos"], device=device).repeat_interleave(count), (0, behind))
        self.second = F.pad(torch.arange(count, device=device).repeat(batch["videos"]), (0, behind))
        self.things = placed(batch["things"][self.video], self.second.float())
        self.shown = batch["shown"][self.video, :, self.second] * self.things[..., 11]


@torch.no_grad()
def patch_labels(batch, frames):
    """[N,27,27,2]: colour and shape at the middle of each patch, 0 where there is no thing."""
    device = batch["things"].device
    middle = torch.arange(GRID, device=device, dtype=torch.float32) * PATCH + PATCH / 2
    labels = torch.zeros(len(frames.video), GRID, GRID, 2, dtype=torch.long, device=device)
    kinds = batch["kinds"][frames.video]
    for i in range(MOST_THINGS):
        inside = coverage(middle, middle, frames.things[:, i]) * frames.shown[:, i, None, None] > 0.5
        labels = torch.where(inside[..., None], kinds[:, i, None, None, :], labels)
    return labels


@torch.no_grad()
def presence(batch, frames):
    """[N,24]: 1 for each colour and shape that a frame shows."""
    kinds = batch["kinds"][frames.video]
    which = (kinds[..., 0] - 1) * len(SHAPE_NAMES) + kinds[..., 1] - 1
    which = torch.where(frames.shown > 0, which, torch.full_like(which, KINDS))
    return torch.zeros(len(frames.video), KINDS + 1, device=kinds.device).scatter_(1, which, 1.0)[:, :-1]
