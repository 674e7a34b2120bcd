"""The oracle's own rounding errors: how far apart its precisions are on one input."""
import torch

import vidi_oracle as vo
from parts import towers


def relative(x, want):
    """||x - want|| / ||want||"""
    return float((x.double() - want.double()).norm() / want.double().norm())


def e4m3(x):
    """Rows rounded to E4M3 with a scale each that makes the largest value 448, the type's largest; f32."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-30) / 448
    return (x.float() / scale).to(torch.float8_e4m3fn).float() * scale


def tower_in_e4m3(w, cfg, mel, keep_layers=None, tower=towers.audio_tower, linear=towers.linear):
    """The audio tower whose linear layers multiply rows and weights in 8 bits."""
    def product(w, name, x):
        y = e4m3(x) @ e4m3(w[name + ".weight"]).T
        return (y + w[name + ".bias"].float() if name + ".bias" in w else y).to(x.dtype)
    towers.linear = product
    try:
        return tower(w, cfg, mel, keep_layers)
    finally:
        towers.linear = linear


def measure(checkpoint, pcm, query, rec, answer, of_tower):
    """Relative errors, {arithmetic: {boundary: error}}: of f32 (rec) against f64, of f16 and bf16 against f32, all along the
    same answer.  fp8: the boundaries `of_tower`, with the tower's matmuls in 8 bits and all else in bf16."""
    def again(dtype):
        return vo.Oracle(checkpoint, dtype, "ideal").run(None, pcm, query, max_new=len(answer), forced=answer)[0]

    def errors(x, want, names):
        return {n: relative(x[n], want[n]) for n in names if n != "mel"}

    out = {"f32": errors(rec, again("float64"), rec), "f16": errors(again("float16"), rec, rec), "bf16": errors(again("bfloat16"), rec, rec)}
    plain, towers.audio_tower = towers.audio_tower, tower_in_e4m3
    try:
        out["fp8"] = errors(again("bfloat16"), rec, of_tower)
    finally:
        towers.audio_tower = plain
    return out
