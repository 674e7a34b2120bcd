"""The forward pass of tests/oracle/vidi_oracle.py for batches of videos with several questions each, with gradients.

In the order in which a video passes: vision, image_tokens; audio, audio_tokens; media (keys and values of both, which do not
depend on the question); text; logits.  check.py holds it against the oracle in f32.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from initial import ADAPTER, AUDIO, GRID, PATCH, VISION, unused
from layers import ENCODER_EPS, ADAPTER_EPS, Functions, audio_layer, feed_forward, gemma_norm, layer_norm, linear, media_keys, rms
from reference import vo

CELLS = 14                                          # token cells of a frame, along each side: below 307 frames
POOL = vo.GEMMA2.defaults["mm_image_pool_size"]
AUDIO_POOL = vo.GEMMA2.defaults["mm_audio_pool_size"]
TIME_INTERVAL = vo.GEMMA2.defaults["mm_time_interval"]


class Model:
    """Parameters by their names in the checkpoint, in f32.  stream: the type in which tokens pass from layer to layer."""

    def __init__(self, tensors, dims, device="cpu"):
        self.dims = dims
        self.tensors = {n: nn.Parameter(t.detach().to(device, torch.float32, copy=True), requires_grad=not unused(n, dims)) for n, t in tensors.items()}
        self.layers = [self.below(f"model.layers.{i}.") for i in range(dims["layers"])]
        self.vision_layers = [self.below(f"{VISION}encoder.layers.{i}.") for i in range(dims["v_layers"] - 1)]
        self.audio_layers = [self.below(f"{AUDIO}layers.{i}.") for i in range(dims["a_layers"])]
        self.functions = Functions()
        self.stream = torch.float32

    def below(self, prefix):
        return {n[len(prefix):]: t for n, t in self.tensors.items() if n.startswith(prefix)}

    def trained(self):
        """{name: parameter} of all that the forward pass reads."""
        return {n: t for n, t in self.tensors.items() if t.requires_grad}

    @property
    def device(self):
        return self.tensors["model.norm.weight"].device

    def vision(self, pixels):
        """[N,3,384,384] -> [N,729,V]"""
        W, p = self.tensors, VISION + "embeddings."
        weight, bias = W[p + "patch_embedding.weight"].to(pixels.dtype), W[p + "patch_embedding.bias"].to(pixels.dtype)
        x = F.conv2d(pixels, weight, bias, stride=PATCH)
        x = (x.flatten(2).transpose(1, 2) + W[p + "position_embedding.weight"]).to(self.stream)
        for layer in self.vision_layers:
            x = self.functions.vision_layer(x, layer, self.dims["v_heads"])
        return x

    def audio(self, mel):
        """[n,128,3000] -> [n,1500,A]"""
        W, p = self.tensors, AUDIO
        x = F.gelu(F.conv1d(mel, W[p + "conv1.weight"], W[p + "conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, W[p + "conv2.weight"], W[p + "conv2.bias"], stride=2, padding=1))
        x = (x.transpose(1, 2) + W[p + "embed_positions.weight"]).to(self.stream)
        for layer in self.audio_layers:
            x = audio_layer(x, layer, self.dims["a_heads"])
        return layer_norm(x, W, p + "layer_norm", ENCODER_EPS)

    def position(self, axis, length, n):
        """[length,D]: vo.position_embedding, in f32 whatever the rest computes in."""
        d = self.dims["hidden"]
        with torch.autocast(self.device.type, enabled=False):
            place = torch.arange(length, dtype=torch.float32, device=self.device) / (length - 1) * (n - 1)
            frequency = torch.exp(torch.arange(0, d, 2, dtype=torch.float32) * -(math.log(10000.0) / d)).to(self.device)
            angle = place[:, None] * frequency
            x = torch.stack([torch.sin(angle), torch.cos(angle)], -1).reshape(length, d)
            p = f"{ADAPTER}pos_{axis}.mlp."
            return rms(linear(F.gelu(linear(x, self.tensors, p + "0")), self.tensors, p + "2"), ADAPTER_EPS)

    def projected(self, name, x):
        """Two linear layers and the norm behind them, for "img" or "aud"."""
        p = f"{ADAPTER}{name}_"
        x = linear(F.gelu(linear(x, self.tensors, p + "projector.model.0")), self.tensors, p + "projector.model.2")
        return rms(x, ADAPTER_EPS) * self.tensors[p + "norm.weight"]

    def to_language_model(self, x):
        """The last norm of the adapters, and the language model's scale for what enters it."""
        x = (rms(x, ADAPTER_EPS) * self.tensors[ADAPTER + "llm_norm.weight"]).to(self.stream)
        return x * math.sqrt(self.dims["hidden"])

    def image_tokens(self, features, second, frames):
        """features [N,729,V], second [N]: which of its video's `frames` each frame is -> [N,196,D]"""
        N, _, V = features.shape
        x = F.pad(features.reshape(N, GRID, GRID, V), (0, 0, 0, 1, 0, 1))
        x = x.reshape(N, CELLS, POOL, CELLS, POOL, V).permute(0, 1, 3, 5, 2, 4).reshape(N, CELLS, CELLS, POOL * POOL * V)
        x = self.projected("img", x)
        x = x + self.position("h", CELLS, POOL)[None, :, None]
        x = x + self.position("w", CELLS, POOL)[None, None]
        x = x + self.position("t", frames, TIME_INTERVAL)[second][:, None, None]
        return self.to_language_model(x).reshape(N, CELLS * CELLS, -1)

    def audio_tokens(self, states, tokens):
        """states [B,T*5 or more,A] -> [B,T,D]"""
        x = states[:, :tokens * AUDIO_POOL].transpose(1, 2)
        x = F.conv1d(x, self.tensors[ADAPTER + "aud_pool.weight"], stride=AUDIO_POOL).transpose(1, 2)
        return self.to_language_model(self.projected("aud", x) + self.position("t", tokens, TIME_INTERVAL))

    def media(self, tokens, videos, each):
        """tokens [n,D], the first videos * each of which are real -> per layer (keys, values), each [B,KV,each,hd]"""
        d, out, e = self.dims, [], tokens
        for i, layer in enumerate(self.layers):
            if i + 1 < d["layers"]:
                k, v, e = self.functions.media_layer(e, layer, d["kv_heads"], d["heads"] // d["kv_heads"], d["head_dim"])
            else:
                k, v = media_keys(e, layer)
            out.append([z[:videos * each].reshape(videos, each, d["kv_heads"], d["head_dim"]).transpose(1, 2) for z in (k, v)])
        return out

    def rotation(self, length):
        """cos and sin [L,hd]"""
        hd = self.dims["head_dim"]
        angle = torch.arange(length, dtype=torch.float32, device=self.device)[:, None] \
            / 10000.0 ** (torch.arange(0, hd, 2, dtype=torch.float32, device=self.device) / hd)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def self_attention(self, q, k, v, rotation, mask):
        """Text to text.  q [R,H,L,hd], k and v [R,KV,L,hd] -> [R,L,H*hd]"""
        cos, sin = rotation
        R, H, L, hd = q.shape
        group, scale, cap = H // k.shape[1], self.dims["qscalar"] ** -0.5, self.dims["softcap"]
        q, k = (z * cos + torch.cat([-z[..., hd // 2:], z[..., :hd // 2]], -1) * sin for z in (q, k))
        with torch.autocast(self.device.type, enabled=False):
            scores = q.float() @ k.float().repeat_interleave(group, 1).transpose(-1, -2)
            scores = torch.tanh(scores * (scale / cap)) * cap
            weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
        out = weights.to(v.dtype) @ v.repeat_interleave(group, 1)
        return out.transpose(1, 2).reshape(R, L, H * hd)

    def cross_attention(self, q, k, v):
        """Text to the tokens of one modality: queries as they are, no mask.  q [B*Q,H,L,hd], k and v [B,KV,N,hd] ->
        ([B*Q,L,H*hd], the first head's weights [B,Q*L,N])"""
        B, KV, N, hd = k.shape
        R, H, L, _ = q.shape
        Q, group = R // B, H // KV
        q = q.reshape(B, Q, KV, group, L, hd).permute(0, 2, 3, 1, 4, 5).reshape(B, KV, group * Q * L, hd)
        with torch.autocast(self.device.type, enabled=False):
            scores = (q.float() * self.dims["qscalar"] ** -0.5) @ k.float().transpose(-1, -2)
        weights = self.functions.capped_softmax(scores, self.dims["softcap"])
        out = (weights.to(v.dtype) @ v).reshape(B, KV, group, Q, L, hd).permute(0, 3, 4, 1, 2, 5)
        return out.reshape(R, L, H * hd), weights[:, 0, :Q * L]

    def text_layer(self, i, x, media, audible, rotation, mask):
        """One layer.  media: {"image" or "audio": keys and values of all layers} -> (x, {modality: first head's weights})"""
        W, d = self.layers[i], self.dims
        R, L, _ = x.shape
        h = gemma_norm(x, W["input_layernorm.weight"])
        q, k, v = (linear(h, W, f"self_attn.{n}_proj").reshape(R, L, -1, d["head_dim"]).transpose(1, 2) for n in "qkv")
        total, seen = linear(self.self_attention(q, k, v, rotation, mask), W, "self_attn.o_proj"), {}
        for name, keys in media.items():
            out, seen[name] = self.cross_attention(q, *keys[i])
            out = linear(out, W, "self_attn.o_proj")
            if name == "audio":
                out = out * audible.repeat_interleave(R // len(audible))[:, None, None]
            total = total + out
        x = x + gemma_norm(total, W["post_attention_layernorm.weight"])
        return feed_forward(x, W), seen

    def text(self, ids, media, audible, watched=None):
        """ids [B*Q,L], Q questions about each video; audible [B]: 0 takes a video's sound away ->
        ([B*Q,L,D] after the last norm, the weights of layer `watched`)"""
        L = ids.shape[1]
        x = F.embedding(ids, self.tensors["model.embed_tokens.weight"]) * math.sqrt(self.dims["hidden"])
        at = torch.arange(L, device=ids.device)
        causal = at[:, None] >= at[None]
        near = causal & (at[:, None] - at[None] < self.dims["window"])
        rotation, kept = self.rotation(L), {}
        for i in range(self.dims["layers"]):
            x, seen = self.text_layer(i, x, media, audible, rotation, near if i % 2 == 0 else causal)
            if i == watched:
                kept = seen
            del seen
        return gemma_norm(x, self.tensors["model.norm.weight"]), kept

    def logits(self, hidden):
        with torch.autocast(self.device.type, enabled=False):
            z = F.linear(hidden.float(), self.tensors["model.embed_tokens.weight"])
        return torch.tanh(z / self.dims["final_softcap"]) * self.dims["final_softcap"]
