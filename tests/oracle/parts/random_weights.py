"""Random weights of every tensor of the real checkpoints, used or not."""
import math

import torch

from .adapters import pool_kernel
from .families import FAMILIES, GEMMA2, WHISPER_V3

MM_STD = 0.028976401314139366


class Draws:
    """Tensors `T` by name, drawn one after the other: their order decides the values."""

    def __init__(self, seed):
        self.g = torch.Generator().manual_seed(seed)
        self.T = {}

    def rn(self, *shape, std=1.0, mean=0.0):
        return torch.randn(*shape, generator=self.g) * std + mean

    def lin(self, name, o, i, bias=True, gain=1.0):
        self.T[name + ".weight"] = self.rn(o, i, std=gain / math.sqrt(i))
        if bias:
            self.T[name + ".bias"] = self.rn(o, std=0.1)

    def ln(self, name, d):
        self.T[name + ".weight"] = self.rn(d, std=0.2, mean=1.0)
        self.T[name + ".bias"] = self.rn(d, std=0.1)


def family_of(a):
    return FAMILIES[a.get("family", GEMMA2.model_type)]


def mel_bins(a):
    return a.get("a_mels", WHISPER_V3["num_mel_bins"])


def language_model(d, a, tied, logit_std):
    """Tied embedding rows are small (2.4/D) so that the layers, not the current token's own (tied) embedding, decide the next
    token; the final norm weight brings the logits back to std `logit_std`.  Vidi 7B does not scale embeddings: its untied rows
    are as large as what the layers add."""
    family = family_of(a)
    is_gemma = family is GEMMA2
    D, hd = a["hidden"], a["head_dim"] or a["hidden"] // a["heads"]
    out_gain = 1.0 if is_gemma else 0.5         # no norm follows attention's output in Vidi 7B
    emb = 2.4 / math.sqrt(D) if tied else 1.0 if is_gemma else 0.7 * math.sqrt(D)
    d.T["model.embed_tokens.weight"] = d.rn(a["vocab"], D, std=emb / math.sqrt(D))
    for i in range(a["layers"]):
        p = f"model.layers.{i}."
        d.lin(p + "self_attn.q_proj", a["heads"] * hd, D, False, 1.6)
        d.lin(p + "self_attn.k_proj", a["kv_heads"] * hd, D, False, 1.6)
        d.lin(p + "self_attn.v_proj", a["kv_heads"] * hd, D, False)
        d.lin(p + "self_attn.o_proj", D, a["heads"] * hd, False, out_gain)
        d.lin(p + "mlp.gate_proj", a["inter"], D, False)
        d.lin(p + "mlp.up_proj", a["inter"], D, False)
        d.lin(p + "mlp.down_proj", D, a["inter"], False)
        for n in family.layer_norms():
            d.T[p + n + ".weight"] = d.rn(D, std=0.25, mean=0.1 if is_gemma else 1.1)          # Gemma's are used as (1 + w)
    gain = logit_std / emb if tied or is_gemma else logit_std
    d.T["model.norm.weight"] = d.rn(D, std=0.25, mean=gain - 1 if is_gemma else gain)
    if not tied:
        d.T["lm_head.weight"] = d.rn(a["vocab"], D, std=1 / math.sqrt(D))


def vision_tower(d, a):
    V, p = a["v_hidden"], "model.mm_vis.vision_model."
    d.T[p + "embeddings.patch_embedding.weight"] = d.rn(V, 3, 14, 14, std=2 / math.sqrt(3 * 14 * 14))
    d.T[p + "embeddings.patch_embedding.bias"] = d.rn(V, std=0.1)
    d.T[p + "embeddings.position_embedding.weight"] = d.rn(729, V, std=0.7)
    for i in range(a["v_layers"]):
        q = f"{p}encoder.layers.{i}."
        for n in ("k_proj", "v_proj", "q_proj"):
            d.lin(f"{q}self_attn.{n}", V, V, gain=1.3 if n != "v_proj" else 1.0)
        d.lin(q + "self_attn.out_proj", V, V)
        d.ln(q + "layer_norm1", V)
        d.ln(q + "layer_norm2", V)
        d.lin(q + "mlp.fc1", a["v_inter"], V)
        d.lin(q + "mlp.fc2", V, a["v_inter"])
    d.ln(p + "post_layernorm", V)
    d.T[p + "head.probe"] = d.rn(1, 1, V)
    d.T[p + "head.attention.in_proj_weight"] = d.rn(3 * V, V, std=1 / math.sqrt(V))
    d.T[p + "head.attention.in_proj_bias"] = d.rn(3 * V, std=0.1)
    d.lin(p + "head.attention.out_proj", V, V)
    d.ln(p + "head.layernorm", V)
    d.lin(p + "head.mlp.fc1", a["v_inter"], V)
    d.lin(p + "head.mlp.fc2", V, a["v_inter"])


def audio_tower(d, a):
    A, mels, p = a["a_hidden"], mel_bins(a), "model.mm_aud.encoder."
    d.T[p + "conv1.weight"] = d.rn(A, mels, 3, std=1.5 / math.sqrt(mels * 3))
    d.T[p + "conv1.bias"] = d.rn(A, std=0.1)
    d.T[p + "conv2.weight"] = d.rn(A, A, 3, std=1.5 / math.sqrt(A * 3))
    d.T[p + "conv2.bias"] = d.rn(A, std=0.1)
    pos = torch.arange(1500.0)[:, None] * torch.exp(-math.log(10000.0) / (A // 2 - 1) * torch.arange(A // 2).float())[None]
    d.T[p + "embed_positions.weight"] = torch.cat([pos.sin(), pos.cos()], 1)
    for i in range(a["a_layers"]):
        q = f"{p}layers.{i}."
        d.lin(q + "self_attn.k_proj", A, A, False, 1.3)
        d.lin(q + "self_attn.v_proj", A, A)
        d.lin(q + "self_attn.q_proj", A, A, gain=1.3)
        d.lin(q + "self_attn.out_proj", A, A)
        d.ln(q + "self_attn_layer_norm", A)
        d.lin(q + "fc1", a["a_inter"], A)
        d.lin(q + "fc2", A, a["a_inter"])
        d.ln(q + "final_layer_norm", A)
    d.ln(p + "layer_norm", A)


def adapters(d, a):
    D, V, A, is_gemma = a["hidden"], a["v_hidden"], a["a_hidden"], family_of(a) is GEMMA2
    d.T["model.mm_rand_llm_norm.weight"] = d.rn(D, std=0.25 * MM_STD, mean=MM_STD)
    if not is_gemma:
        k = pool_kernel(27, a["pool"])
        d.T["model.mm_rand_img_pool.conv.weight"] = d.rn(V, V, k, k, std=1 / math.sqrt(V * k * k))
    d.lin("model.mm_rand_img_projector.model.0", D, 4 * V if is_gemma else V)
    d.lin("model.mm_rand_img_projector.model.2", D, D)
    d.T["model.mm_rand_img_norm.weight"] = d.rn(D, std=0.2, mean=1.0)
    for n in ("pos_w", "pos_h", "pos_t"):
        d.lin(f"model.mm_rand_{n}.mlp.0", D, D, gain=1.5)
        d.lin(f"model.mm_rand_{n}.mlp.2", D, D, gain=1.5)
    pooled = D if is_gemma else A
    d.T["model.mm_rand_aud_pool.weight"] = d.rn(pooled, A, 5, std=1 / math.sqrt(5 * A))
    d.lin("model.mm_rand_aud_projector.model.0", D, pooled)
    d.lin("model.mm_rand_aud_projector.model.2", D, D)
    d.T["model.mm_rand_aud_norm.weight"] = d.rn(D, std=0.2, mean=1.0)
