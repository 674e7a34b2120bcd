"""The model's dimensions and its weights before training, under the names of the real checkpoint."""
import math

import torch

from reference import vo

# Heads of the real model (256 / 72 / 64); the language model's widths are multiples of 256, which the 4-bit formats need.
DIMS = dict(hidden=256, layers=5, heads=2, kv_heads=1, head_dim=256, inter=256, window=24, qscalar=256, softcap=50.0, final_softcap=30.0,
            v_hidden=144, v_layers=4, v_heads=2, v_inter=256, a_hidden=128, a_layers=2, a_heads=2, a_inter=256)
VISION, AUDIO, ADAPTER = "model.mm_vis.vision_model.", "model.mm_aud.encoder.", "model.mm_rand_"
PATCH, GRID, MELS, WINDOW_STATES = 14, 27, 128, 1500
# Radians that a time frequency may turn over a whole video to begin at full strength; faster ones, which frames a second apart
# cannot tell from slow ones, begin smaller.
SLOW = 60


class Maker:
    """Random tensors by name."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}

    def normal(self, *shape, std=1.0):
        return torch.randn(*shape, generator=self.generator) * std

    def matrix(self, name, out, inputs, *, bias=True, gain=1.0):
        self.tensors[name + ".weight"] = self.normal(out, inputs, std=gain / math.sqrt(inputs))
        if bias:
            self.tensors[name + ".bias"] = torch.zeros(out)

    def convolution(self, name, out, inputs, width, gain=1.0):
        self.tensors[name + ".weight"] = self.normal(out, inputs, width, std=gain / math.sqrt(width * inputs))

    def layer_norm(self, name, width):
        self.tensors[name + ".weight"], self.tensors[name + ".bias"] = torch.ones(width), torch.zeros(width)


def language_model(m, dims, vocabulary):
    D, hd = dims["hidden"], dims["head_dim"]
    m.tensors["model.embed_tokens.weight"] = m.normal(vocabulary, D, std=1 / math.sqrt(D))
    for i in range(dims["layers"]):
        p = f"model.layers.{i}."
        for name, heads in (("q", dims["heads"]), ("k", dims["kv_heads"]), ("v", dims["kv_heads"])):
            m.matrix(f"{p}self_attn.{name}_proj", heads * hd, D, bias=False)
        m.matrix(p + "self_attn.o_proj", D, dims["heads"] * hd, bias=False)
        m.matrix(p + "mlp.gate_proj", dims["inter"], D, bias=False)
        m.matrix(p + "mlp.up_proj", dims["inter"], D, bias=False)
        m.matrix(p + "mlp.down_proj", D, dims["inter"], bias=False)
        for name in ("input_layernorm", "pre_feedforward_layernorm"):
            m.tensors[f"{p}{name}.weight"] = torch.zeros(D)
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            m.tensors[f"{p}{name}.weight"] = torch.full((D,), -0.4)
    m.tensors["model.norm.weight"] = torch.zeros(D)


def patch_positions(m, width):
    """[729,V]: sines of row and column, rotated at random."""
    y, x = torch.meshgrid(torch.arange(GRID) / (GRID - 1), torch.arange(GRID) / (GRID - 1), indexing="ij")
    turns = torch.tensor([0.5, 1, 1.5, 2, 3, 4, 6, 8][:max(1, width // 16)]) * 2 * math.pi
    waves = torch.cat([f(t.reshape(-1, 1) * turns) for t in (x, y) for f in (torch.sin, torch.cos)], 1) * 0.5
    waves = torch.cat([waves, torch.zeros(GRID * GRID, width)], 1)[:, :width]
    return waves @ torch.linalg.qr(m.normal(width, width))[0] + m.normal(GRID * GRID, width, std=0.02)


def vision_tower(m, dims):
    V, p = dims["v_hidden"], VISION
    m.tensors[p + "embeddings.patch_embedding.weight"] = m.normal(V, 3, PATCH, PATCH, std=1.2 / math.sqrt(3 * PATCH * PATCH))
    m.tensors[p + "embeddings.patch_embedding.bias"] = torch.zeros(V)
    m.tensors[p + "embeddings.position_embedding.weight"] = patch_positions(m, V)
    for i in range(dims["v_layers"]):
        q = f"{p}encoder.layers.{i}."
        for name in "kvq":
            m.matrix(f"{q}self_attn.{name}_proj", V, V)
        m.matrix(q + "self_attn.out_proj", V, V, gain=0.5)
        m.layer_norm(q + "layer_norm1", V)
        m.layer_norm(q + "layer_norm2", V)
        m.matrix(q + "mlp.fc1", dims["v_inter"], V)
        m.matrix(q + "mlp.fc2", V, dims["v_inter"], gain=0.5)
    m.layer_norm(p + "post_layernorm", V)
    m.tensors[p + "head.probe"] = m.normal(1, 1, V)
    m.tensors[p + "head.attention.in_proj_weight"] = m.normal(3 * V, V, std=1 / math.sqrt(V))
    m.tensors[p + "head.attention.in_proj_bias"] = torch.zeros(3 * V)
    m.matrix(p + "head.attention.out_proj", V, V)
    m.layer_norm(p + "head.layernorm", V)
    m.matrix(p + "head.mlp.fc1", dims["v_inter"], V)
    m.matrix(p + "head.mlp.fc2", V, dims["v_inter"])


def audio_tower(m, dims):
    A, p = dims["a_hidden"], AUDIO
    m.convolution(p + "conv1", A, MELS, 3)
    m.convolution(p + "conv2", A, A, 3, gain=1.4)
    m.tensors[p + "conv1.bias"], m.tensors[p + "conv2.bias"] = torch.zeros(A), torch.zeros(A)
    place = torch.arange(float(WINDOW_STATES))[:, None] * torch.exp(-math.log(10000.0) / (A // 2 - 1) * torch.arange(A // 2).float())[None]
    m.tensors[p + "embed_positions.weight"] = torch.cat([place.sin(), place.cos()], 1) * 0.3
    for i in range(dims["a_layers"]):
        q = f"{p}layers.{i}."
        for name in "kvq":
            m.matrix(f"{q}self_attn.{name}_proj", A, A, bias=name != "k")
        m.matrix(q + "self_attn.out_proj", A, A, gain=0.5)
        m.layer_norm(q + "self_attn_layer_norm", A)
        m.matrix(q + "fc1", dims["a_inter"], A)
        m.matrix(q + "fc2", A, dims["a_inter"], gain=0.5)
        m.layer_norm(q + "final_layer_norm", A)
    m.layer_norm(p + "layer_norm", A)


def adapters(m, dims):
    D, p = dims["hidden"], ADAPTER
    m.tensors[p + "llm_norm.weight"] = torch.full((D,), 1 / math.sqrt(D))
    m.matrix(p + "img_projector.model.0", D, 4 * dims["v_hidden"])
    m.matrix(p + "img_projector.model.2", D, D)
    m.tensors[p + "img_norm.weight"] = torch.ones(D)
    for axis in "wht":
        m.matrix(f"{p}pos_{axis}.mlp.0", D, D, gain=1.5)
        m.matrix(f"{p}pos_{axis}.mlp.2", D, D)
    turns = (vo.GEMMA2.defaults["mm_time_interval"] - 1) * torch.exp(torch.arange(0, D, 2).float() * -(math.log(10000.0) / D))
    m.tensors[p + "pos_t.mlp.0.weight"] *= (SLOW / turns.repeat_interleave(2)).clamp(max=1.0)[None] * 1.4
    m.convolution(p + "aud_pool", D, dims["a_hidden"], 5)
    m.matrix(p + "aud_projector.model.0", D, D)
    m.matrix(p + "aud_projector.model.2", D, D)
    m.tensors[p + "aud_norm.weight"] = torch.ones(D)


def initial_weights(dims, vocabulary, seed):
    """{name: f32 tensor}, every tensor of the real checkpoint's layout."""
    m = Maker(seed)
    language_model(m, dims, vocabulary)
    vision_tower(m, dims)
    audio_tower(m, dims)
    adapters(m, dims)
    return m.tensors


def unused(name, dims):
    """True for what the forward pass never reads: the last vision layer, and all of the tower behind it."""
    return name.startswith((f"{VISION}encoder.layers.{dims['v_layers'] - 1}.", VISION + "post_layernorm", VISION + "head."))
