"""Whisper's encoder from CTranslate2's variables to the tensors of our layout (the names of transformers, below model.mm_aud)."""
import numpy as np
import torch

GELU_ERF = 3          # CTranslate2's ActivationType::GELU


def need(holds, what):
    if not holds:
        raise ValueError(what)


def tensors(variables, width, layers, heads):
    """CTranslate2's variables below encoder/ -> {name in our layout: tensor}; says what does not fit."""
    left = {k[len("encoder/"):]: v for k, v in variables.items() if k.startswith("encoder/")}
    out = {}

    def take(source, target):
        out["model.mm_aud.encoder." + target] = torch.from_numpy(left.pop(source).astype(np.float32))

    def pair(source, target, norm=False):
        for s, t in ((("gamma", "weight"), ("beta", "bias")) if norm else (("weight", "weight"), ("bias", "bias"))):
            take(f"{source}/{s}", f"{target}.{t}")

    need(int(left.pop("num_heads")) == heads, "the encoder has another number of heads")
    need(int(variables["decoder/activation"]) == GELU_ERF, "the feed-forward part has another activation than GELU with erf")
    pair("conv1", "conv1")
    pair("conv2", "conv2")
    take("position_encodings/encodings", "embed_positions.weight")
    for i in range(layers):
        s, t = f"layer_{i}/", f"layers.{i}."
        pair(s + "self_attention/layer_norm", t + "self_attn_layer_norm", norm=True)
        weight, bias = left.pop(s + "self_attention/linear_0/weight"), left.pop(s + "self_attention/linear_0/bias")
        need(not bias[width:2 * width].any(), f"layer {i}: the bias of the keys is not zero")
        for n, w, b in zip("qkv", np.split(weight, 3), np.split(bias, 3)):
            left[f"{n}/weight"] = w
            take(f"{n}/weight", f"{t}self_attn.{n}_proj.weight")
            if n != "k":                         # k_proj has no bias in our layout
                left[f"{n}/bias"] = b
                take(f"{n}/bias", f"{t}self_attn.{n}_proj.bias")
        pair(s + "self_attention/linear_1", t + "self_attn.out_proj")
        pair(s + "ffn/layer_norm", t + "final_layer_norm", norm=True)
        pair(s + "ffn/linear_0", t + "fc1")
        pair(s + "ffn/linear_1", t + "fc2")
    pair("layer_norm", "layer_norm", norm=True)
    need(not left, f"variables without a place: {sorted(left)}")
    return out
