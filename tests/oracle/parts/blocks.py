"""Weights of a checkpoint, and the small numeric parts that both towers, the adapters and the language model share."""
import json
import os

import torch
import torch.nn.functional as F

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Weights:
    """Lazy view over the shards; tensors are converted to the compute dtype on first use."""

    def __init__(self, directory, dtype):
        from safetensors import safe_open
        self.dtype = dtype
        self.cache = {}
        index = os.path.join(directory, "model.safetensors.index.json")
        if os.path.exists(index):
            with open(index) as f:
                wmap = json.load(f)["weight_map"]
        else:
            with safe_open(os.path.join(directory, "model.safetensors"), "pt") as f:
                wmap = {k: "model.safetensors" for k in f.keys()}
        self.map = wmap
        self.files = {s: safe_open(os.path.join(directory, s), "pt") for s in sorted(set(wmap.values()))}
        self.used = set()

    def __contains__(self, name):
        return name in self.map

    def __getitem__(self, name):
        self.used.add(name)
        if name not in self.cache:
            self.cache[name] = self.files[self.map[name]].get_tensor(name).to(self.dtype)
        return self.cache[name]

    def kept_wide(self, name):
        """float32 (float64 when the oracle runs in double) straight from disk, never rounded to half."""
        self.used.add(name)
        return self.files[self.map[name]].get_tensor(name).to(torch.float64 if self.dtype == torch.float64 else torch.float32)


def wide(x):
    """float32 'internal' precision (float64 stays float64 when the oracle runs in double)."""
    return x if x.dtype == torch.float64 else x.float()


def linear(w, name, x):
    b = w[name + ".bias"] if (name + ".bias") in w else None
    return F.linear(x, w[name + ".weight"], b)


def layer_norm(w, name, x, eps):
    return F.layer_norm(x, (x.shape[-1],), w[name + ".weight"], w[name + ".bias"], eps)


def gemma_rms(w, name, x, eps):
    """Gemma-2 RMSNorm: (x / rms) * (1 + weight), all in fp32, then one rounding."""
    h = wide(x)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (h * (1.0 + wide(w[name + ".weight"]))).to(x.dtype)


def mistral_rms(w, name, x, eps):
    """Mistral's RMSNorm: weight * (x / rms), with a rounding to the working dtype between the two."""
    return w[name + ".weight"] * plain_rms(x, eps)


def plain_rms(x, eps=1e-5):
    h = wide(x)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def vidi_rms(w, name, x):
    """mm_rand_* norms: rounding to the working dtype BEFORE the weight multiply, no '1 +'; eps 1e-5 in both families."""
    return mistral_rms(w, name, x, 1e-5)


def attention(q, k, v, scale, softcap=0.0, mask=None, q_block=2048):
    """q [H,Lq,D], k/v [Hkv,Lk,D] -> [Lq,H*D].  mask: bool [Lq,Lk] (True = visible) or None.

    Scores and softmax in fp32; probabilities rounded to the working dtype before PV."""
    h, lq, d = q.shape
    rep = h // k.shape[0]
    kf = wide(k).repeat_interleave(rep, 0).transpose(1, 2)
    vf = wide(v).repeat_interleave(rep, 0)
    out = []
    for s0 in range(0, lq, q_block):
        s = torch.matmul(wide(q[:, s0:s0 + q_block]), kf) * scale
        if softcap:
            s = torch.tanh(s / softcap) * softcap
        if mask is not None:
            s = s.masked_fill(~mask[None, s0:s0 + q_block], float("-inf"))
        p = torch.softmax(s, -1)
        if q.dtype in (torch.float16, torch.bfloat16):
            p = wide(p.to(q.dtype))
        out.append(torch.matmul(p, vf))
    o = torch.cat(out, 1).to(q.dtype)
    return o.transpose(0, 1).reshape(lq, h * d)


def heads(x, n):
    """[L, n*D] -> [n, L, D]"""
    return x.reshape(x.shape[0], n, -1).transpose(0, 1)
