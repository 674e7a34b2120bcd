"""Vidi 1.5 9B (on Gemma 2) and Vidi 7B (on Mistral): everything in which the two differ, named once, and config.json."""
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch.nn.functional as F

from . import adapters, blocks, text

# Tower geometries of the real models; a checkpoint overrides them with the optional keys
# "mm_vision_config" / "mm_audio_config" in config.json.
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
              num_channels=3, image_size=384, patch_size=14, layer_norm_eps=1e-6)
WHISPER_V3 = dict(d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120,
                  num_mel_bins=128, max_source_positions=1500)
SHARED_DEFAULTS = dict(mm_vision_select_layer=-2, mm_audio_pool_size=5, mm_projector_type="mlp2x_gelu", mm_input_type="video",
                       mm_image_aspect_ratio="resize")


@dataclass(frozen=True)
class Family:
    """One of the two models."""
    model_type: str
    architecture: str
    defaults: dict                   # keys of config.json that may be absent
    required: tuple                  # keys of config.json that may not
    # adapters
    image_pool: Callable             # (w, cfg, [F, 729, C], side) -> [F, h, w, C']
    # language model
    norm: Callable                   # (w, name, x, eps) -> x / rms with the family's gain
    activation: Callable             # of the feed-forward part
    ffn_norm: str                    # the norm before the feed-forward part
    attention_out_norm: Optional[str]    # the norms between a part's output and the residual; None: there are none
    ffn_out_norm: Optional[str]
    scales_embeddings: bool          # text, image and audio embeddings times sqrt(hidden_size)
    slides: Callable                 # layer index -> whether sliding_window counts there
    # text
    question: Callable               # (query, duration) -> the retrieval question
    prompt_suffix: str               # follows the rendered chat template
    range_re: Any
    written_time: Callable           # seconds -> text
    end_token: Optional[int]         # ends an answer; None: config.json's eos_token_id

    def layer_norms(self):
        """Names of a layer's norms, in the order of the file."""
        post = [] if self.ffn_out_norm is None else [self.ffn_out_norm]
        return list(dict.fromkeys(["input_layernorm", "post_attention_layernorm", self.ffn_norm, *post]))

    def head_dim(self, c):
        return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


GEMMA2 = Family(
    model_type="dattn_gemma2", architecture="DattnGemma2ForCausalLM",
    defaults=dict(SHARED_DEFAULTS, vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
                  num_attention_heads=16, num_key_value_heads=8, head_dim=256, rms_norm_eps=1e-6,
                  rope_theta=10000.0, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                  query_pre_attn_scalar=256, sliding_window=4096, tie_word_embeddings=True, mm_image_pool_size=2, mm_time_interval=10000,
                  hidden_activation="gelu_pytorch_tanh"),
    required=(),
    image_pool=adapters.merge_pool,
    norm=blocks.gemma_rms, activation=lambda x: F.gelu(x, approximate="tanh"),
    ffn_norm="pre_feedforward_layernorm", attention_out_norm="post_attention_layernorm", ffn_out_norm="post_feedforward_layernorm",
    scales_embeddings=True, slides=lambda layer: layer % 2 == 0,
    question=text.gemma_question, prompt_suffix="<start_of_turn>model\n",
    range_re=text.RANGE_RE, written_time=text.gemma_time, end_token=107)

MISTRAL = Family(
    model_type="dattn_mistral", architecture="DattnMistralForCausalLM",
    defaults=dict(SHARED_DEFAULTS, vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                  num_attention_heads=32, num_key_value_heads=8, head_dim=None, rms_norm_eps=1e-5, rope_theta=1e6,
                  attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=None, tie_word_embeddings=False,
                  eos_token_id=2, hidden_act="silu"),
    required=("mm_image_pool_size", "mm_time_interval"),
    image_pool=adapters.convolution_pool,
    norm=blocks.mistral_rms, activation=F.silu,
    ffn_norm="post_attention_layernorm", attention_out_norm=None, ffn_out_norm=None,
    scales_embeddings=False, slides=lambda layer: True,
    question=text.mistral_question, prompt_suffix="",
    range_re=text.MISTRAL_RANGE_RE, written_time=text.mistral_time, end_token=None)

FAMILIES = {f.model_type: f for f in (GEMMA2, MISTRAL)}


def rope_theta(raw):
    """The base in config.json: rope_theta, or rope_parameters.rope_theta, where transformers 5 writes it; None if in neither."""
    newer = raw.get("rope_parameters") or {}
    for kind in (newer.get("rope_type"), (raw.get("rope_scaling") or {}).get("rope_type")):
        if kind not in (None, "default"):
            raise ValueError(f"rope_type {kind}: a scaled rotary embedding is not computed here")
    return newer.get("rope_theta") if raw.get("rope_theta") is None else raw["rope_theta"]


class Config(dict):
    """config.json over the defaults of its family; `family`, and the towers' geometries as `vis` and `aud`."""
    __getattr__ = dict.__getitem__

    @staticmethod
    def load(directory):
        with open(os.path.join(directory, "config.json")) as f:
            return Config.read(json.load(f))

    @staticmethod
    def read(raw):
        """raw: what config.json says."""
        family = FAMILIES.get(raw.get("model_type") or GEMMA2.model_type)
        if family is None:
            raise ValueError(f"model_type {raw.get('model_type')!r} is none of {list(FAMILIES)}")
        missing = [k for k in family.required if raw.get(k) is None]
        if missing:
            raise ValueError(f"config.json of a {family.model_type} has no {missing[0]}, and there is no default for it")
        c = Config(family.defaults)
        c.update({k: v for k, v in raw.items() if not (v is None and k in family.defaults and k.startswith("mm_"))})
        c["rope_theta"] = rope_theta(raw) or family.defaults["rope_theta"]
        c["head_dim"] = family.head_dim(c)
        scalar = c["query_pre_attn_scalar"] if "query_pre_attn_scalar" in family.defaults else c["head_dim"]
        c["attention_scale"] = scalar ** -0.5
        c["family"] = family
        c["vis"] = Config({**SO400M, **(raw.get("mm_vision_config") or {})})
        c["aud"] = Config({**WHISPER_V3, **(raw.get("mm_audio_config") or {})})
        return c

    def end_token(self):
        return self.eos_token_id if self.family.end_token is None else self.family.end_token
