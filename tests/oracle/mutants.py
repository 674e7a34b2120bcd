"""Mistakes that one can make with Vidi 7B, and how far each one's values are from the committed golden cases.

    OMP_NUM_THREADS=1 python mutants.py --golden ../golden > mutants-7b.txt

A mutant is the oracle with one thing changed.  Each runs on the case that is named for it, is compared boundary by boundary
with what the case has, and is told by the first boundary that is off by more than its tolerance (MODEL.md, "Decisions").  The
exit status is 1 if the oracle itself is off somewhere, if a mutant is not told, or if one is that should be below the
tolerances.
"""
import argparse
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from typing import Any, Callable
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import make_texts
import mutated
import vidi_oracle as vo
from parts import adapters, blocks, language, text

BEFORE_TEXT = ["pooled", "image_projected", "pos_h", "pos_w", "pos_t_image", "image_tokens_before_llm_norm", "image_tokens",
               "audio_pooled", "audio_projected", "pos_t_audio", "audio_tokens_before_llm_norm", "audio_tokens"]
FACTS = ["prompt", "text_token_ids"]
AFTER = ["text_final_norm", "prefill_logits", "prefill_logits_all", "step_logits"]
LAST = ["generated_token_ids", "stopped_by_eos", "text", "time_ranges"]


@dataclass
class Mutant:
    name: str
    case: str
    family: dict = field(default_factory=dict)      # fields of Family
    config: dict = field(default_factory=dict)      # keys of config.json as read
    lm: Any = vo.LM                                 # class of the language model
    weights: dict = field(default_factory=dict)     # name -> change of a weight
    chat: Callable = None                           # changes the Chat
    patch: tuple = ()                               # (object, attribute, value)
    below: bool = False                             # smaller than the tolerances, and meant to be


class Case:
    """A golden case and what the towers make of its input; no mutant changes those."""

    def __init__(self, golden, name):
        directory = os.path.join(golden, "cases", name)
        with open(os.path.join(directory, "golden.json")) as f:
            self.facts = json.load(f)
        self.tensors = load_file(os.path.join(directory, "golden.safetensors"))
        self.checkpoint = os.path.join(directory, self.facts["checkpoint"])
        oracle = vo.Oracle(self.checkpoint, "float32", "ideal")
        self.w, self.cfg = oracle.w, oracle.cfg
        self.features = {}
        if os.path.exists(os.path.join(directory, "frames.npy")):
            pixels = vo.preprocess_frames(np.load(os.path.join(directory, "frames.npy")), self.cfg.vis.image_size)
            self.features["vision_features"] = vo.towers.vision_tower(self.w, self.cfg, pixels)
        if os.path.exists(os.path.join(directory, "pcm.npy")):
            pcm = np.load(os.path.join(directory, "pcm.npy")).astype(np.float32) / 32768
            mel, frames = vo.log_mel(pcm, self.cfg.aud.num_mel_bins)
            self.features.update(audio_features=vo.towers.audio_tower(self.w, self.cfg, mel), audio_frames=frames)

    def run(self, m):
        """What the mutant computes: tensors and facts."""
        facts = self.facts
        oracle = vo.Oracle(self.checkpoint, "float32", "ideal")
        oracle.cfg.update(m.config)
        oracle.cfg["family"] = replace(oracle.cfg.family, **m.family)
        for name, change in m.weights.items():
            oracle.w.cache[name] = change(oracle.w[name])
        oracle.lm = m.lm(oracle.w, oracle.cfg, "ideal")
        oracle.chat.suffix = oracle.cfg.family.prompt_suffix
        if m.chat:
            m.chat(oracle.chat)
        with contextlib.ExitStack() as patches, torch.no_grad():
            for where, what, value in m.patch:
                patches.enter_context(mock.patch.object(where, what, value))
            rec, info = oracle.run(query=facts["query"], user_text=facts["user_text"], duration=facts["duration"], max_new=facts["max_new_tokens"],
                                   **self.features)
        info["time_ranges"] = json.loads(json.dumps(vo.time_ranges(info["text"], facts["duration"], oracle.cfg.family)))
        return rec, info

    def distances(self, rec, info):
        """(boundary, relative error or None where it is of another shape or another fact, tolerance), in the order of the model."""
        layers = [f"{m}_hidden.{i}" for i in range(self.cfg.num_hidden_layers + 1) for m in ("text", "image", "audio")]
        for name in BEFORE_TEXT + FACTS + layers + AFTER + LAST:
            if name in FACTS + LAST:
                yield name, 0.0 if info[name] == self.facts[name] else None, 0.0
            elif name in self.tensors:
                yield name, self.distance(rec, name), 3e-6 if name in BEFORE_TEXT else 2e-5

    def distance(self, rec, name):
        note, want = self.facts["tensors"][name], self.tensors[name]
        if name not in rec or list(rec[name].shape) != note["shape"]:
            return None
        got = rec[name] if note["stride"] == 1 else rec[name].flatten()[::note["stride"]]
        return float((got.double() - want.double()).norm() / want.double().norm())


QUESTION = "Given the frames from a video, answer the time range in percentage that corresponds to query text split by comma. "
GELU = dict(activation=lambda x: F.gelu(x, approximate="tanh"))

MUTANTS = [
    Mutant("norms use 1 + weight", "7b_basic", family=dict(norm=blocks.gemma_rms)),
    Mutant("norms' eps 1e-6", "7b_basic", config=dict(rms_norm_eps=1e-6)),
    Mutant("tanh GELU instead of SiLU", "7b_basic", family=GELU),
    Mutant("exact GELU instead of SiLU", "7b_basic", family=dict(activation=F.gelu)),
    Mutant("scale (hidden / heads)^-0.5", "7b_basic", config=dict(attention_scale=8 ** -0.5)),
    Mutant("scale 256^-0.5", "7b_realdims", config=dict(attention_scale=256 ** -0.5)),
    Mutant("attention soft cap 50", "7b_basic", config=dict(attn_logit_softcapping=50.0)),
    Mutant("logits soft cap 30", "7b_basic", config=dict(final_logit_softcapping=30.0)),
    Mutant("text scaled by sqrt(hidden)", "7b_basic", lm=mutated.ScalesText),
    Mutant("image tokens scaled by sqrt(hidden)", "7b_basic", lm=mutated.ScalesImage),
    Mutant("audio tokens scaled by sqrt(hidden)", "7b_basic", lm=mutated.ScalesAudio),
    Mutant("norm between attention and residual", "7b_basic", lm=mutated.NormOfTheSum),
    Mutant("norm between diagonal and residual", "7b_basic", lm=mutated.NormOfTheDiagonal),
    Mutant("norm after the feed-forward", "7b_basic", family=dict(ffn_out_norm="post_attention_layernorm")),
    Mutant("feed-forward normed by input_layernorm", "7b_basic", family=dict(ffn_norm="input_layernorm")),
    Mutant("feed-forward not normed", "7b_basic", lm=mutated.FeedForwardNotNormed),
    Mutant("feed-forward without residual", "7b_basic", lm=mutated.FeedForwardWithoutResidual),
    Mutant("diagonal: no feed-forward", "7b_basic", lm=mutated.DiagonalAlone),
    Mutant("diagonal: no attention part", "7b_basic", lm=mutated.NoDiagonal),
    Mutant("diagonal: no residual", "7b_basic", lm=mutated.DiagonalWithoutResidual),
    Mutant("diagonal: kv heads tiled", "7b_basic", lm=mutated.DiagonalTiled),
    Mutant("GQA kv heads tiled", "7b_basic", patch=((language, "attention", mutated.tiled),)),
    Mutant("T2V/T2A queries rotated", "7b_basic", lm=mutated.RotatesCrossQueries),
    Mutant("T2V/T2A keys rotated", "7b_basic", lm=mutated.RotatesCrossKeys),
    Mutant("cross KV without input_layernorm", "7b_basic", lm=mutated.CrossKeysNotNormed),
    Mutant("rope_theta 1e4", "7b_basic", config=dict(rope_theta=1e4)),
    Mutant("rope_parameters not read", "7b_pool_of_26", config=dict(rope_theta=1e6)),
    Mutant("interleaved RoPE", "7b_basic", lm=mutated.InterleavedRope),
    Mutant("decode position off by one", "7b_basic", lm=mutated.PositionOff),
    Mutant("sliding window ignored", "7b_pool_of_26", config=dict(sliding_window=None)),
    Mutant("sliding window on even layers only", "7b_pool_of_26", family=dict(slides=lambda layer: layer % 2 == 0)),
    Mutant("sliding window of W + 1 keys", "7b_pool_of_26", config=dict(sliding_window=41)),
    Mutant("a window where there is none", "7b_long_prompt", config=dict(sliding_window=128)),
    Mutant("lm_head tied", "7b_basic", config=dict(tie_word_embeddings=True)),
    Mutant("parts summed before the residual", "7b_basic", lm=mutated.SumBeforeResidual, below=True),
    Mutant("grid padded to 28 before the convolution", "7b_basic", family=dict(image_pool=mutated.pool(before=lambda f: F.pad(f, (0, 1, 0, 1))))),
    Mutant("convolution with stride k", "7b_basic", family=dict(image_pool=mutated.pool(stride=6))),
    Mutant("convolution with stride k, pool of 10", "7b_realdims", family=dict(image_pool=mutated.pool(stride=3))),
    Mutant("convolution with padding", "7b_basic", family=dict(image_pool=mutated.pool(before=lambda f: F.pad(f, (3, 2, 3, 2))))),
    Mutant("kernel turned by half", "7b_basic", weights={mutated.POOL: lambda k: k.flip(-1, -2)}),
    Mutant("kernel's rows and columns swapped", "7b_basic", weights={mutated.POOL: lambda k: k.transpose(-1, -2)}),
    Mutant("kernel's in and out swapped", "7b_basic", weights={mutated.POOL: lambda k: k.transpose(0, 1)}),
    Mutant("grid's rows and columns swapped", "7b_basic", family=dict(image_pool=mutated.pool(before=lambda f: f.transpose(-1, -2)))),
    Mutant("align_corners = False", "7b_basic", family=dict(image_pool=mutated.pool(after=lambda f, s: F.interpolate(f, (s, s), mode="bilinear")))),
    Mutant("align_corners = False, pool of 10", "7b_realdims", family=dict(image_pool=mutated.pool(after=lambda f, s: F.interpolate(f, (s, s), mode="bilinear")))),
    Mutant("nearest instead of bilinear", "7b_basic", family=dict(image_pool=mutated.pool(after=lambda f, s: F.interpolate(f, (s, s), mode="nearest")))),
    Mutant("mean of cells instead of the resize", "7b_basic", family=dict(image_pool=mutated.pool(after=lambda f, s: F.adaptive_avg_pool2d(f, s)))),
    Mutant("resized before the convolution", "7b_basic", family=dict(image_pool=mutated.resized_first)),
    Mutant("first cells instead of the resize", "7b_basic", family=dict(image_pool=mutated.pool(after=lambda f, s: f[..., :s, :s]))),
    Mutant("frame budget of Vidi 1.5", "7b_many_frames", family=dict(image_pool=mutated.budgeted)),
    Mutant("pos_h/pos_w of N = 2", "7b_basic", patch=((adapters, "position_embedding", mutated.positions(lambda name, n: n if name.endswith("t") else 2)),)),
    Mutant("pos_h/pos_w of N = 10000", "7b_basic", patch=((adapters, "position_embedding", mutated.positions(lambda name, n: 10000)),)),
    Mutant("pos_t forgotten on audio", "7b_basic", patch=((vo, "fuse_audio", mutated.no_position_on_audio),)),
    Mutant("odd mel frames rounded up", "7b_long_audio", patch=((vo, "fuse_audio", mutated.rounded_up),)),
    Mutant("audio pool's taps reversed", "7b_basic", weights={mutated.AUDIO_POOL: lambda k: k.flip(-1)}),
    Mutant("audio pool's in and out swapped", "7b_basic", weights={mutated.AUDIO_POOL: lambda k: k.transpose(0, 1)}),
    Mutant("v0.2's template (space before [/INST])", "7b_basic", chat=mutated.other_end(" [/INST]")),
    Mutant("v0.3's template (no space)", "7b_pool_of_26", chat=mutated.other_end("[/INST]")),
    Mutant("user's turn trimmed", "7b_open_question", chat=mutated.trimmed),
    Mutant("newline after [/INST]", "7b_basic", family=dict(prompt_suffix="\n")),
    Mutant("bos of the template kept", "7b_basic", chat=mutated.keeps_bos),
    Mutant("second bos kept", "7b_basic", chat=mutated.keeps_second_bos),
    Mutant("prompt tokenised in one piece", "7b_basic", chat=mutated.one_piece),
    Mutant("question of Vidi 1.5", "7b_basic", family=dict(question=text.gemma_question)),
    Mutant("length without two decimals", "7b_basic", family=dict(question=mutated.question(QUESTION + "Video length is: {d} and text query is: {plain}."))),
    Mutant("length in whole seconds", "7b_basic", family=dict(question=mutated.question(QUESTION + "Video length is: {d:.0f} and text query is: {plain}."))),
    Mutant("query's full stop kept", "7b_no_audio", family=dict(question=mutated.question(QUESTION + "Video length is: {d:.2f} and text query is: {q}."))),
    Mutant("answer ends at 107 only", "7b_time_ranges", family=dict(end_token=107)),
    Mutant("seconds padded in the raw answer", "7b_time_ranges", family=dict(written_time=lambda t: "{:02d}:{:02d}:{:05.2f}".format(*text.clock(t)))),
    Mutant("seconds with their fraction", "7b_time_ranges", family=dict(written_time=lambda t: "{:02d}:{:02d}:{:.2f}".format(*text.clock(t)[:2], t % 60))),
    Mutant("times of Vidi 1.5", "7b_time_ranges", family=dict(written_time=text.gemma_time)),
    Mutant("expression of Vidi 1.5", "texts.json", family=dict(range_re=text.RANGE_RE)),
    Mutant("expression without |", "texts.json", family=dict(range_re=text.re.compile(r"([\d\.]+)-([\d\.]+)"))),
    Mutant("only ASCII digits", "texts.json", family=dict(range_re=text.re.compile(r"([0-9|\.]+)-([0-9|\.]+)"))),
]


def told(case, m):
    """-> (boundary, its error, error of the logits, whether the tokens are the same) of the first that is off, or None."""
    rec, info = case.run(m)
    off = list(case.distances(rec, info))
    logits = next((d for name, d, _ in off if name == "prefill_logits"), None)
    same = info["generated_token_ids"] == case.facts["generated_token_ids"]
    worst = max((d for _, d, _ in off if d is not None), default=0.0)
    for name, d, limit in off:
        if d is None or d > limit:
            return name, d, logits, same
    return None, worst, logits, same


def answers_told(golden, m):
    """Rows of texts.json whose answer this mutant reads differently."""
    with open(os.path.join(golden, "units", "texts.json")) as f:
        rows = [r for r in json.load(f)["answers"] if r["model_type"] == vo.MISTRAL.model_type]
    family = replace(vo.MISTRAL, **m.family)
    read = [json.loads(json.dumps(make_texts.answer_row(family, r["text"], r["duration"]))) for r in rows]
    official = [{k: v for k, v in r.items() if k != "ours"} for r in rows]
    return sum(got != want for got, want in zip(read, official)), len(rows)


def number(x):
    return "-" if x is None else f"{x:.2e}"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--golden", required=True)
    ap.add_argument("only", nargs="*", help="parts of names; all when none is given")
    a = ap.parse_args()
    torch.set_num_threads(1)
    known, wrong = {}, []
    chosen = [m for m in MUTANTS if not a.only or any(part in m.name for part in a.only)]
    print(f"{'mutant':43s} {'case':17s} {'first boundary off':29s} {'rel there':>9s} {'rel logits':>10s} tokens")
    for name in dict.fromkeys(m.case for m in chosen if m.case != "texts.json"):
        known[name] = Case(a.golden, name)
        found = told(known[name], Mutant("none", name))
        if found[0] is not None:
            wrong.append(f"the oracle itself: {name}: {found}")
    for m in chosen:
        if m.case == "texts.json":
            count, all_rows = answers_told(a.golden, m)
            print(f"{m.name:43s} {m.case:17s} {f'{count} of {all_rows} answers':29s} {'-':>9s} {'-':>10s} -", flush=True)
            wrong += [] if count else [m.name]
            continue
        boundary, there, logits, same = told(known[m.case], m)
        if (boundary is None) != m.below:
            wrong.append(m.name)
        print(f"{m.name:43s} {m.case:17s} {boundary or 'none, largest error':29s} {number(there):>9s} {number(logits):>10s} {'same' if same else 'differ'}", flush=True)
    for line in wrong:
        print("WRONG:", line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
