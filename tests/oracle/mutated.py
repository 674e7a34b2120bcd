"""Parts of the oracle with one thing changed each: what mutants.py puts in the place of the right ones.

In the order of the mutants: classes of the language model, adapters, text."""
from dataclasses import replace
from unittest import mock

import torch
import torch.nn.functional as F

import vidi_oracle as vo
from parts import adapters, blocks, text
from parts.tokenizer import mistral_chat_template


class ScalesText(vo.LM):
    """scaled() is called for the text first."""
    at = 0

    def prefill(self, *a, **k):
        self.calls = 0
        return super().prefill(*a, **k)

    def decode(self, token):
        self.calls = 0
        return super().decode(token)

    def scaled(self, e):
        self.calls += 1
        return e if e is None or self.calls != self.at + 1 else e * self.norm_scale


class ScalesImage(ScalesText):
    at = 1


class ScalesAudio(ScalesText):
    at = 2


class NormOfTheSum(vo.LM):
    def add(self, p, x, parts, norm):
        return super().add(p, x, parts, "post_attention_layernorm" if len(parts) > 1 else None)


class NormOfTheDiagonal(vo.LM):
    def diagonal(self, p, e, v):
        with mock.patch.object(self, "f", replace(self.f, attention_out_norm="post_attention_layernorm")):
            return super().diagonal(p, e, v)


class DiagonalAlone(vo.LM):
    """The modality's rows without the feed-forward part."""
    def diagonal(self, p, e, v):
        with mock.patch.object(self, "ffn", lambda p, x: x):
            return super().diagonal(p, e, v)


class NoDiagonal(vo.LM):
    def diagonal(self, p, e, v):
        return self.ffn(p, e)


class DiagonalWithoutResidual(vo.LM):
    def diagonal(self, p, e, v):
        return super().diagonal(p, torch.zeros_like(e), v)


class DiagonalTiled(vo.LM):
    def diagonal(self, p, e, v):
        every_head = v.repeat(self.c.num_attention_heads // self.c.num_key_value_heads, 1, 1)
        own = blocks.linear(self.w, p + "self_attn.o_proj", every_head.transpose(0, 1).reshape(e.shape[0], -1))
        return self.ffn(p, e + own)


class InsideLayer(vo.LM):
    """Knows which of a layer's three streams is computed: text comes first, then the modalities that there are."""

    def layer(self, i, x, cos, sin, pos, mm, advance):
        self.attended, self.projected, self.table = 0, 0, (cos, sin)
        self.streams = [] if mm is None else [name for name in mm if mm[name] is not None]
        self.mm = mm
        return super().layer(i, x, cos, sin, pos, mm, advance)


class RotatesCrossQueries(InsideLayer):
    def attend(self, p, q, k, v, mask=None):
        self.attended += 1
        return super().attend(p, q if self.attended == 1 else self.rotate(q, *self.table), k, v, mask)


class RotatesCrossKeys(InsideLayer):
    def attend(self, p, q, k, v, mask=None):
        self.attended += 1
        if self.attended > 1:
            k = self.rotate(k, *self.rope(torch.arange(k.shape[1]), k.dtype))
        return super().attend(p, q, k, v, mask)


class CrossKeysNotNormed(InsideLayer):
    def keys_values(self, p, n):
        self.projected += 1
        return super().keys_values(p, n if self.projected == 1 else self.mm[self.streams[self.projected - 2]])


class FeedForwardNotNormed(vo.LM):
    def ffn(self, p, x, block=8192):
        plain = lambda w, name, y, eps: y       # noqa: E731
        with mock.patch.object(self, "f", replace(self.f, norm=plain)):
            return super().ffn(p, x, block)


class FeedForwardWithoutResidual(vo.LM):
    def ffn(self, p, x, block=8192):
        return super().ffn(p, x, block) - x


class SumBeforeResidual(vo.LM):
    def add(self, p, x, parts, norm):
        return x + sum(parts[1:], parts[0])


class InterleavedRope(vo.LM):
    @staticmethod
    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        cos, sin = (t[..., :half].repeat_interleave(2, -1) for t in (cos, sin))
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * cos + turned * sin


class PositionOff(vo.LM):
    def prefill(self, *a, **k):
        z = super().prefill(*a, **k)
        self.pos += 1
        return z


def tiled(q, k, v, *rest):
    every = q.shape[0] // k.shape[0]
    return blocks.attention(q, k.repeat(every, 1, 1), v.repeat(every, 1, 1), *rest)


POOL = "model.mm_rand_img_pool.conv.weight"
AUDIO_POOL = "model.mm_rand_aud_pool.weight"


def pool(before=lambda f: f, after=None, stride=1):
    """An image pool with another way before or after its convolution."""
    def run(w, cfg, feat, side):
        s = cfg.mm_image_pool_size
        f = F.conv2d(before(adapters.as_picture(feat, side)), w[POOL], stride=stride)
        f = after(f, s) if after else F.interpolate(f, size=(s, s), mode="bilinear", align_corners=True)
        return f.permute(0, 2, 3, 1)
    return run


def resized_first(w, cfg, feat, side):
    s, k = cfg.mm_image_pool_size, w[POOL].shape[-1]
    f = F.interpolate(adapters.as_picture(feat, side), size=(s + k - 1,) * 2, mode="bilinear", align_corners=True)
    return F.conv2d(f, w[POOL]).permute(0, 2, 3, 1)


def budgeted(w, cfg, feat, side):
    """Fewer cells above 306 frames, as Vidi 1.5 has."""
    s = int(cfg.mm_image_pool_size * vo.grid_after_budget(len(feat), 2) / 28)
    return pool(after=lambda f, _: F.interpolate(f, size=(s, s), mode="bilinear", align_corners=True))(w, cfg, feat, side)


def positions(change):
    """position_embedding with another length of its scale."""
    def run(w, name, length, n, d, dtype, plain=adapters.position_embedding):
        return plain(w, name, length, change(name, n), d, dtype)
    return run


def no_position_on_audio(*a, plain=adapters.fuse_audio):
    with mock.patch.object(adapters, "position_embedding", lambda w, name, length, n, d, dtype: torch.zeros(length, d, dtype=dtype)):
        return plain(*a)


def rounded_up(w, cfg, feat, n_frames, rec, plain=adapters.fuse_audio):
    return plain(w, cfg, feat, n_frames + n_frames % 2, rec)


def other_end(end):
    def change(chat):
        chat.template = mistral_chat_template(end)
    return change


def trimmed(chat):
    chat.template = chat.template.replace("message['content'] +", "message['content'] | trim +")


def keeps_bos(chat):
    chat.prompt = lambda turn: text.render(chat.template, turn, chat.tokens)


def keeps_second_bos(chat):
    def encode(prompt):
        ids = [chat.tok.encode(c).ids for c in prompt.split("<image>")]
        return sum(ids, []), sum(ids, [])
    chat.encode = encode


def one_piece(chat):
    chat.encode = lambda prompt: (None, chat.tok.encode(prompt.replace("<image>", "")).ids)


def question(form):
    return lambda query, duration: form.format(d=duration, q=query, plain=text.without_full_stop(query))
