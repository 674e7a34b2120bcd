"""Checkpoints in the real layout: what `vidi ask --model DIR` opens, written and read back."""
import json
import math
import os
import shutil

import torch
from safetensors.torch import load_file

from reference import vo

SHARDS = 3


def save(directory, tensors, dims, words):
    """config.json, shards and index, tokenizer files; bf16.  Replaces what is there, as a whole -> bytes of weights"""
    fresh = directory + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    stored = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in tensors.items()}
    config = vo.config_json(dims, words.size, True, "bfloat16", 1 / math.sqrt(dims["hidden"]), "trained")
    vo.save_weights(fresh, stored, config, SHARDS)
    words.save(fresh)
    for file in os.listdir(fresh):
        os.chmod(os.path.join(fresh, file), 0o644)
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(fresh, directory)
    return sum(t.numel() * t.element_size() for t in stored.values())


def load(directory):
    """-> ({name: tensor}, dims)"""
    with open(os.path.join(directory, "config.json")) as f:
        c = json.load(f)
    v, a = c["mm_vision_config"], c["mm_audio_config"]
    dims = dict(hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"],
                head_dim=c["head_dim"], inter=c["intermediate_size"], window=c["sliding_window"], qscalar=c["query_pre_attn_scalar"],
                softcap=c["attn_logit_softcapping"], final_softcap=c["final_logit_softcapping"], v_hidden=v["hidden_size"],
                v_layers=v["num_hidden_layers"], v_heads=v["num_attention_heads"], v_inter=v["intermediate_size"], a_hidden=a["d_model"],
                a_layers=a["encoder_layers"], a_heads=a["encoder_attention_heads"], a_inter=a["encoder_ffn_dim"])
    tensors = {}
    for file in sorted(os.listdir(directory)):
        if file.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(directory, file)))
    return tensors, dims
