"""Checkpoints of random weights in the real on-disk layout."""
import json
import os

import torch

from . import random_weights
from .blocks import DTYPES
from .families import GEMMA2
from .random_weights import family_of, mel_bins
from .tokenizer import LAYOUTS, build_tokenizer

PRESETS = {
    # 4 layers (2 sliding, 2 full); heads*head_dim != hidden and query_pre_attn_scalar != head_dim on purpose
    "tiny": dict(hidden=64, layers=4, heads=4, kv_heads=2, head_dim=24, inter=128, vocab=512, window=16, qscalar=20,
                 softcap=10.0, final_softcap=30.0, v_hidden=32, v_layers=3, v_heads=2, v_inter=64, a_hidden=32,
                 a_layers=2, a_heads=2, a_inter=64),
    # head sizes of the real model (256 / 72 / 64), still small
    "realdims": dict(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=256, inter=512, vocab=512, window=4096, qscalar=256,
                     softcap=50.0, final_softcap=30.0, v_hidden=144, v_layers=3, v_heads=2, v_inter=272, a_hidden=128,
                     a_layers=2, a_heads=2, a_inter=256),
    # Vidi 7B: 4 queries a kv head as in the real model; head_dim != hidden / heads on purpose.  pool: mm_image_pool_size
    "tiny-7b": dict(family="dattn_mistral", layout="mistral-v0.3", hidden=64, layers=3, heads=8, kv_heads=2, head_dim=24, inter=128,
                    vocab=512, pool=5, v_hidden=32, v_layers=3, v_heads=2, v_inter=64, a_hidden=48, a_layers=2, a_heads=2, a_inter=64),
    # head sizes of the real model (128 / 72 / 64)
    "realdims-7b": dict(family="dattn_mistral", layout="mistral-v0.3", hidden=256, layers=4, heads=8, kv_heads=2, head_dim=128, inter=512,
                        vocab=512, pool=5, v_hidden=144, v_layers=3, v_heads=2, v_inter=272, a_hidden=128, a_layers=2, a_heads=2,
                        a_inter=256),
}


def config_json(a, vocab, tied, dtype, std, kind):
    """config.json of a checkpoint with dimensions `a`.  std: mm_std; kind: what the towers' names say of the weights."""
    vis = dict(hidden_size=a["v_hidden"], intermediate_size=a["v_inter"], num_hidden_layers=a["v_layers"], num_attention_heads=a["v_heads"],
               num_channels=3, image_size=384, patch_size=14, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", attention_dropout=0.0)
    aud = dict(d_model=a["a_hidden"], encoder_layers=a["a_layers"], encoder_attention_heads=a["a_heads"], encoder_ffn_dim=a["a_inter"],
               num_mel_bins=mel_bins(a), max_source_positions=1500)
    family = family_of(a)
    shared = {"architectures": [family.architecture], "model_type": family.model_type,
              "attention_dropout": 0.0, "hidden_size": a["hidden"], "initializer_range": 0.02, "intermediate_size": a["inter"], "loss_thres": None,
              "mm_audio_pool_size": 5, "mm_audio_tower": f"tiny/whisper-tiny-{kind}", "mm_image_aspect_ratio": "resize",
              "mm_image_grid_points": None, "mm_image_pool_size": a.get("pool", 2), "mm_input_type": "video", "mm_projector_type": "mlp2x_gelu",
              "mm_splits": 4, "mm_std": std, "mm_time_interval": 10000, "mm_vision_select_layer": -2,
              "num_attention_heads": a["heads"], "num_hidden_layers": a["layers"], "num_key_value_heads": a["kv_heads"],
              "torch_dtype": dtype, "train_aud": False, "train_llm": True, "train_rand": True,
              "train_vis": False, "use_cache": True, "vocab_size": vocab, "mm_vision_config": vis, "mm_audio_config": aud}
    own = gemma_keys(a, tied, kind) if family is GEMMA2 else mistral_keys(a, tied, kind)
    keys = {**shared, **own}
    towers = ("mm_vision_config", "mm_audio_config")
    ordered = ["architectures", "model_type", *sorted(k for k in keys if k not in ("architectures", "model_type", *towers)), *towers]
    return {k: keys[k] for k in ordered}


def gemma_keys(a, tied, kind):
    """What config.json of Vidi 1.5 has beside the shared keys."""
    return {"attention_bias": False, "attn_logit_softcapping": a["softcap"], "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 107,
            "final_logit_softcapping": a["final_softcap"], "head_dim": a["head_dim"], "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
            "mm_vision_tower": f"tiny/siglip2-tiny-{kind}-patch14-384", "pad_token_id": 0,
            "query_pre_attn_scalar": a["qscalar"], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": a["window"],
            "tie_word_embeddings": tied, "transformers_version": "4.50.0"}


def mistral_keys(a, tied, kind):
    """What config.json of Vidi 7B has beside the shared keys.  Absent is what transformers does not write: head_dim where
    it is hidden / heads, tie_word_embeddings where it is false; with `newer`, rope_theta stands in rope_parameters."""
    theta = a.get("theta", 1e6)
    rope = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}} if a.get("newer") else {"rope_theta": theta}
    return {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "max_position_embeddings": 32768,
            "mm_vision_tower": f"tiny/siglip-tiny-{kind}-patch14-384", "rms_norm_eps": 1e-5, "sliding_window": a.get("window"),
            "transformers_version": "5.0.0" if a.get("newer") else "4.44.2", **rope,
            **({"head_dim": a["head_dim"]} if a["head_dim"] else {}), **({"tie_word_embeddings": True} if tied else {})}


def save_weights(out, T, cfg, shards):
    """config.json, shards and index in `out`; each shard is a contiguous range of T's names, all of roughly equal size."""
    from safetensors.torch import save_file
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(cfg, f, indent=1)
    names, total = list(T), sum(v.numel() * v.element_size() for v in T.values())
    groups, acc = [[] for _ in range(shards)], 0
    for n in names:
        groups[min(shards - 1, acc * shards // total)].append(n)
        acc += T[n].numel() * T[n].element_size()
    wmap = {}
    for i, grp in enumerate(groups):
        fn = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: T[n] for n in grp}, os.path.join(out, fn), metadata={"format": "pt"})
        wmap.update({n: fn for n in grp})
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(wmap.items()))}, f, indent=1)


def make_checkpoint(out, seed, a, tied=True, shards=3, dtype="float32", logit_std=6.0, row_swaps=(), replaced=None):
    """A checkpoint directory of random weights with dimensions `a`.  `replaced`: {name: tensor} in place of random ones."""
    os.makedirs(out, exist_ok=True)
    draws = random_weights.Draws(seed)
    random_weights.language_model(draws, a, tied, logit_std)
    random_weights.vision_tower(draws, a)
    random_weights.audio_tower(draws, a)
    random_weights.adapters(draws, a)
    T = draws.T

    for name, tensor in (replaced or {}).items():
        if name not in T or T[name].shape != tensor.shape:
            raise ValueError(f"{name} {list(tensor.shape)} takes no tensor's place")
        T[name] = tensor.float()

    for x, y in row_swaps:                      # exchange output rows so that greedy decoding produces chosen tokens
        assert not tied
        h = T["lm_head.weight"]
        h[[x, y]] = h[[y, x]].clone()

    # a 16-bit checkpoint keeps the position MLPs in float32 (mixed dtypes inside one shard)
    T = {k: v.to(torch.float32 if k.startswith("model.mm_rand_pos_") else DTYPES[dtype]).contiguous() for k, v in T.items()}

    cfg = config_json(a, a["vocab"], tied, dtype, random_weights.MM_STD, "random")
    save_weights(out, T, cfg, shards)
    build_tokenizer(out, a["vocab"], LAYOUTS[a.get("layout", "gemma")])
    tower_folders(out, T, cfg, a)
    return T


def tower_folders(out, T, cfg, a):
    """The towers' own folders, as the official code wants them (from_pretrained); the oracle does not read these."""
    from safetensors.torch import save_file
    vis, aud = cfg["mm_vision_config"], cfg["mm_audio_config"]
    vd, ad = os.path.join(out, "towers", "siglip2-tiny"), os.path.join(out, "towers", "whisper-tiny")
    os.makedirs(vd, exist_ok=True)
    os.makedirs(ad, exist_ok=True)
    with open(os.path.join(vd, "config.json"), "w") as f:
        json.dump({"model_type": "siglip_vision_model", **vis}, f, indent=1)
    with open(os.path.join(vd, "preprocessor_config.json"), "w") as f:
        json.dump({"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
                   "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor",
                   "resample": 2, "rescale_factor": 0.00392156862745098, "size": {"height": 384, "width": 384}}, f, indent=1)
    save_file({k[len("model.mm_vis."):]: v for k, v in T.items() if k.startswith("model.mm_vis.")},
              os.path.join(vd, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(ad, "config.json"), "w") as f:
        json.dump({"model_type": "whisper", **aud, "decoder_layers": 1, "decoder_attention_heads": a["a_heads"], "decoder_ffn_dim": 64,
                   "vocab_size": 300, "activation_function": "gelu", "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1,
                   "eos_token_id": 2, "decoder_start_token_id": 3, "suppress_tokens": [], "begin_suppress_tokens": []}, f, indent=1)
    with open(os.path.join(ad, "preprocessor_config.json"), "w") as f:
        json.dump({"chunk_length": 30, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mel_bins(a), "hop_length": 160,
                   "n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right", "padding_value": 0.0,
                   "return_attention_mask": False, "sampling_rate": 16000}, f, indent=1)
    save_file({k[len("model.mm_aud."):]: v for k, v in T.items() if k.startswith("model.mm_aud.")},
              os.path.join(ad, "model.safetensors"), metadata={"format": "pt"})
