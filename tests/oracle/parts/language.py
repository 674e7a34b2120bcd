"""The language model with decomposed attention, its caches and greedy generation (MODEL.md 7; MODEL-7B.md, "Language model")."""
import torch
import torch.nn.functional as F

from .blocks import attention, heads, linear
from .families import GEMMA2


class SlidingCache:
    """K/V of one sliding layer.

    mode "ideal":    every query sees itself and the W-1 positions before it.
    mode "official": what transformers 4.50.0 + flash-attn 2 compute (see MODEL.md, 'Sliding window'):
                     prefill sees W+1 keys; the fixed-size cache rolls one step too early."""

    def __init__(self, window, mode, max_len):
        self.W, self.mode = window, mode
        self.slots = min(window, max_len)
        self.k = self.v = None

    def prefill(self, k, v):
        L = k.shape[1]
        if self.mode == "ideal":
            self.k, self.v = k[:, -self.W:], v[:, -self.W:]
        elif L > self.slots:
            self.k, self.v = k[:, -self.slots:], v[:, -self.slots:]
        else:
            z = k.new_zeros(k.shape[0], self.slots - L, k.shape[2])
            self.k, self.v = torch.cat([k, z], 1), torch.cat([v, z], 1)
        i = torch.arange(L)
        reach = self.W if (self.mode == "official" and L > self.W) else self.W - 1
        return k, v, (i[:, None] >= i[None, :]) & (i[:, None] - i[None, :] <= reach)

    def step(self, k, v, pos):
        if self.mode == "ideal":
            self.k = torch.cat([self.k, k], 1)[:, -self.W:]
            self.v = torch.cat([self.v, v], 1)[:, -self.W:]
            return self.k, self.v
        if pos >= self.slots - 1:
            self.k, self.v = self.k.roll(-1, 1), self.v.roll(-1, 1)
        at = min(pos, self.slots - 1)
        self.k, self.v = self.k.clone(), self.v.clone()
        self.k[:, at], self.v[:, at] = k[:, 0], v[:, 0]
        n = min(pos + 1, self.W)
        return self.k[:, :n], self.v[:, :n]


class FullCache:
    def prefill(self, k, v):
        self.k, self.v = k, v
        i = torch.arange(k.shape[1])
        return k, v, i[:, None] >= i[None, :]

    def step(self, k, v, pos):
        self.k, self.v = torch.cat([self.k, k], 1), torch.cat([self.v, v], 1)
        return self.k, self.v


class LM:
    def __init__(self, w, cfg, sliding="official"):
        if sliding == "official" and cfg.sliding_window and cfg.family is not GEMMA2:
            raise ValueError(f"the official code's sliding window is known for {GEMMA2.model_type} only: use the textbook one")
        self.w, self.c, self.sliding = w, cfg, sliding
        self.tied = cfg.tie_word_embeddings or "lm_head.weight" not in w
        self.f = cfg.family
        self.norm_scale = torch.tensor(cfg.hidden_size ** 0.5, dtype=w.dtype)
        half = cfg.head_dim // 2
        self.inv_freq = 1.0 / (cfg.rope_theta ** (torch.arange(0, 2 * half, 2, dtype=torch.int64).float() / cfg.head_dim))
        self.scale = cfg.attention_scale

    def rope(self, pos, dtype):
        f = pos.float()[:, None] * self.inv_freq[None]
        f = f.double() if dtype == torch.float64 else f
        e = torch.cat([f, f], -1)
        return e.cos().to(dtype), e.sin().to(dtype)

    @staticmethod
    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def ffn(self, p, x, block=8192):
        w, eps = self.w, self.c.rms_norm_eps
        out = []
        for s in range(0, x.shape[0], block):
            r = x[s:s + block]
            h = self.f.norm(w, p + self.f.ffn_norm, r, eps)
            h = self.f.activation(linear(w, p + "mlp.gate_proj", h)) * linear(w, p + "mlp.up_proj", h)
            h = linear(w, p + "mlp.down_proj", h)
            out.append(self.add(p, r, [h], self.f.ffn_out_norm))
        return torch.cat(out)

    def add(self, p, x, parts, norm):
        """The residual x plus `parts`, in their order: normed as a sum first where the family has such a norm."""
        if norm is None:
            for part in parts:
                x = x + part
            return x
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return x + self.f.norm(self.w, p + norm, total, self.c.rms_norm_eps)

    def scaled(self, e):
        """Embeddings as they enter the first layer."""
        return e if e is None or not self.f.scales_embeddings else e * self.norm_scale

    def keys_values(self, p, n):
        """Keys and values of normed rows, by head and not rotated."""
        return tuple(heads(linear(self.w, f"{p}self_attn.{t}_proj", n), self.c.num_key_value_heads) for t in "kv")

    def attend(self, p, q, k, v, mask=None):
        o = attention(q, k, v, self.scale, self.c.attn_logit_softcapping or 0.0, mask)
        return linear(self.w, p + "self_attn.o_proj", o)

    def diagonal(self, p, e, v):
        """A modality's rows for the next layer: each attends to itself alone, so its value is what attention gives."""
        every_head = v.repeat_interleave(self.c.num_attention_heads // self.c.num_key_value_heads, 0)
        own = linear(self.w, p + "self_attn.o_proj", every_head.transpose(0, 1).reshape(e.shape[0], -1))
        return self.ffn(p, self.add(p, e, [own], self.f.attention_out_norm))

    def layer(self, i, x, cos, sin, pos, mm, advance):
        """One decoder layer.  mm: {'image': [N,D] or None, 'audio': ...} embeddings entering the layer
        (prefill only).  advance: also update them for the next layer (skipped after the last layer)."""
        w, c = self.w, self.c
        p = f"model.layers.{i}."
        n = self.f.norm(w, p + "input_layernorm", x, c.rms_norm_eps)
        q = heads(linear(w, p + "self_attn.q_proj", n), c.num_attention_heads)
        k, v = self.keys_values(p, n)
        qr, kr = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        if mm is not None:
            kk, vv, mask = self.cache[i].prefill(kr, v)
        else:
            (kk, vv), mask = self.cache[i].step(kr, v, pos), None
        parts = [self.attend(p, qr, kk, vv, mask)]

        for name in ("image", "audio"):
            e = None if mm is None else mm[name]
            if e is not None:
                self.mm_cache[i][name] = self.keys_values(p, self.f.norm(w, p + "input_layernorm", e, c.rms_norm_eps))
            kv = self.mm_cache[i].get(name)
            if kv is None:
                continue
            parts.append(self.attend(p, q, *kv))            # un-rotated queries, no positions, no mask
            if e is not None and advance:
                mm[name] = self.diagonal(p, e, kv[1])
        return self.ffn(p, self.add(p, x, parts, self.f.attention_out_norm))

    def logits(self, x):
        h = self.f.norm(self.w, "model.norm", x, self.c.rms_norm_eps)
        z = F.linear(h, self.w["model.embed_tokens.weight"] if self.tied else self.w["lm_head.weight"])
        cap = self.c.final_logit_softcapping
        if cap is not None:
            z = torch.tanh(z / cap) * cap
        return h, z

    def prefill(self, ids, image, audio, max_new, rec=None, record_mm=False):
        c, w = self.c, self.w
        L = len(ids)
        n = c.num_hidden_layers
        self.cache = [SlidingCache(c.sliding_window, self.sliding, L + max_new - 1) if c.sliding_window and self.f.slides(i) else FullCache()
                      for i in range(n)]
        self.mm_cache = [dict() for _ in range(n)]
        x = self.scaled(F.embedding(torch.tensor(ids), w["model.embed_tokens.weight"]))
        mm = {"image": self.scaled(image), "audio": self.scaled(audio)}
        cos, sin = self.rope(torch.arange(L), x.dtype)
        for i in range(n):
            if rec is not None:
                rec[f"text_hidden.{i}"] = x
                for m in ("image", "audio"):
                    if record_mm and mm[m] is not None:
                        rec[f"{m}_hidden.{i}"] = mm[m]
            x = self.layer(i, x, cos, sin, None, mm, advance=i + 1 < n)
        if rec is not None:
            rec[f"text_hidden.{n}"] = x
        h, z = self.logits(x)
        if rec is not None:
            rec["text_final_norm"], rec["prefill_logits_all"] = h, z
            rec["prefill_logits"] = z[-1]
        self.pos = L
        return z[-1]

    def decode(self, token):
        x = self.scaled(F.embedding(torch.tensor([token]), self.w["model.embed_tokens.weight"]))
        cos, sin = self.rope(torch.tensor([self.pos]), x.dtype)
        for i in range(self.c.num_hidden_layers):
            x = self.layer(i, x, cos, sin, self.pos, None, False)
        self.pos += 1
        return self.logits(x)[1][0]

    def generate(self, ids, image, audio, max_new, eos, rec=None, record_mm=False, forced=None):
        z = self.prefill(ids, image, audio, max_new, rec, record_mm)
        out, steps = [], []
        while True:
            zf = z.float() if z.dtype != torch.float64 else z
            steps.append(zf)
            t = int(zf.argmax()) if forced is None else forced[len(out)]
            out.append(t)
            if t == eos or len(out) == max_new:
                break
            z = self.decode(t)
        return out, torch.stack(steps)
