"""From tower features to image and audio tokens (MODEL.md 4 to 6; MODEL-7B.md, "Image adapter" and "Audio adapter")."""
import math
import re

import torch
import torch.nn.functional as F

from .blocks import linear, plain_rms, vidi_rms
from .towers import HOP, N_SAMPLES


def grid_after_budget(n_frames, pool):
    """Side (before the pool x pool merge) of the resized patch grid.  Doubles, same operation order as upstream."""
    budget = 60000 * pool * pool
    if n_frames * 28 * 28 <= budget:
        return 28
    ratio = math.sqrt(budget / (n_frames * 28 * 28))
    s = int(28 * ratio)
    return max(10, s - s % 2)


def as_picture(feat, side):
    """[F, side * side, C] -> [F, C, side, side]"""
    return feat.reshape(feat.shape[0], side, side, -1).permute(0, 3, 1, 2)


def merge_pool(w, cfg, feat, side):
    """Vidi 1.5: [F, 729, C] -> [F, h, w, pool*pool*C], by space to depth; has no weights."""
    pool = cfg.mm_image_pool_size
    f = F.pad(as_picture(feat, side), (0, 1, 0, 1))             # one zero column right, one zero row below
    assert f.shape[-1] == 28, "upstream hard-codes a 27x27 patch grid"
    s = grid_after_budget(feat.shape[0], pool)
    if s != 28:
        f = F.interpolate(f, size=(s, s), mode="bilinear", align_corners=False)   # no antialias
    b, c, h, wd = f.shape
    f = f.reshape(b, c, h // pool, pool, wd // pool, pool)
    # output channel index = c * pool^2 + dy * pool + dx
    f = f.permute(0, 1, 3, 5, 2, 4).reshape(b, c * pool * pool, h // pool, wd // pool)
    return f.permute(0, 2, 3, 1)         # (left as a strided view: the CPU half-precision GEMM rounds differently on it)


def pool_kernel(side, pool):
    """Side of Vidi 7B's pooling kernel; the convolution leaves side + 1 - kernel cells a side, never fewer than `pool`."""
    return math.ceil(side / pool)


def convolution_pool(w, cfg, feat, side):
    """Vidi 7B: [F, 729, C] -> [F, s, s, C], s = mm_image_pool_size whatever the number of frames.

    A k x k convolution (stride 1, no padding, no bias), then a bilinear resize whose corners are the corner cells."""
    kernel, s = w["model.mm_rand_img_pool.conv.weight"], cfg.mm_image_pool_size
    k = pool_kernel(side, s)
    if tuple(kernel.shape[-2:]) != (k, k):
        raise ValueError(f"model.mm_rand_img_pool.conv.weight is {list(kernel.shape)}; mm_image_pool_size {s} asks for kernels of {k} x {k}")
    f = F.conv2d(as_picture(feat, side), kernel)
    f = F.interpolate(f, size=(s, s), mode="bilinear", align_corners=True)
    return f.permute(0, 2, 3, 1)


def mlp_gelu(w, name, x, arch):
    if arch == "linear":
        return linear(w, name + ".model", x)
    depth = int(re.match(r"^mlp(\d+)x_gelu$", arch).group(1))
    x = linear(w, name + ".model.0", x)
    for i in range(1, depth):
        x = linear(w, f"{name}.model.{2 * i}", F.gelu(x))
    return x


def position_embedding(w, name, length, n, d, dtype):
    """Fractional sinusoid + MLP, then weightless RMS norm.  [length, d] in `dtype`.

    The MLP runs in float32 with its weights taken from disk in float32, whatever the model dtype."""
    if length < 2:
        raise ValueError(f"{name}: needs at least 2 positions (upstream asserts), got {length}")
    p = torch.arange(length, dtype=torch.float32) / (length - 1) * (n - 1)
    div = torch.exp(torch.arange(0, d, 2, dtype=torch.float32) * -(math.log(10000.0) / d))
    ang = p[:, None] * div                      # float32 product on purpose
    ang = ang.to(torch.float64) if dtype == torch.float64 else ang
    pe = torch.stack([torch.sin(ang), torch.cos(ang)], -1).reshape(length, d)      # sin even, cos odd
    for i, j in ((0, True), (2, False)):
        pe = F.linear(pe, w.kept_wide(f"{name}.mlp.{i}.weight"), w.kept_wide(f"{name}.mlp.{i}.bias"))
        pe = F.gelu(pe) if j else pe
    return plain_rms(pe.to(dtype))


def fuse_images(w, cfg, feat, rec):
    """[F, 729, C] -> image tokens [F*h*w, D] (frame-major, then row, then column)."""
    nf = feat.shape[0]
    side = cfg.vis.image_size // cfg.vis.patch_size
    d = cfg.hidden_size
    g = cfg.family.image_pool(w, cfg, feat, side)
    rec["pooled"] = g
    x = mlp_gelu(w, "model.mm_rand_img_projector", g, cfg.mm_projector_type)
    rec["image_projected"] = x
    x = vidi_rms(w, "model.mm_rand_img_norm", x)
    pool = cfg.mm_image_pool_size
    ph = position_embedding(w, "model.mm_rand_pos_h", x.shape[1], pool, d, x.dtype)
    pw = position_embedding(w, "model.mm_rand_pos_w", x.shape[2], pool, d, x.dtype)
    pt = position_embedding(w, "model.mm_rand_pos_t", nf, cfg.mm_time_interval, d, x.dtype)
    rec["pos_h"], rec["pos_w"], rec["pos_t_image"] = ph, pw, pt
    x = x + ph[None, :, None]
    x = x + pw[None, None]
    x = x + pt[:, None, None]
    x = x.reshape(-1, d)
    rec["image_tokens_before_llm_norm"] = x
    return vidi_rms(w, "model.mm_rand_llm_norm", x)


def fuse_audio(w, cfg, feat, n_frames, rec):
    """[W,1500,C] -> audio tokens [T, D], T = floor(floor(n_frames / 2) / 5).  The pool's output has width D in Vidi 1.5 and the
    encoder's own width C in Vidi 7B, as its weight [out, C, 5] says."""
    d, k = cfg.hidden_size, cfg.mm_audio_pool_size
    n = int(math.floor(n_frames * (cfg.aud.max_source_positions / (N_SAMPLES // HOP))))
    x = feat.reshape(-1, feat.shape[-1])[:n]
    x = F.conv1d(x.T[None], w["model.mm_rand_aud_pool.weight"], stride=k)[0].T
    assert x.shape[0] == n // k
    rec["audio_pooled"] = x
    x = mlp_gelu(w, "model.mm_rand_aud_projector", x, cfg.mm_projector_type)
    rec["audio_projected"] = x
    x = vidi_rms(w, "model.mm_rand_aud_norm", x)
    pt = position_embedding(w, "model.mm_rand_pos_t", x.shape[0], cfg.mm_time_interval, d, x.dtype)
    rec["pos_t_audio"] = pt
    x = x + pt
    rec["audio_tokens_before_llm_norm"] = x
    return vidi_rms(w, "model.mm_rand_llm_norm", x)
