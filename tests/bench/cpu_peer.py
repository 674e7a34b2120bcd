"""What cpu_bench times, in PyTorch: reads the name of a case a line, runs it once, answers with [{wall_s, cpu_s}, ..] of its laps, or null.

    cpu_bench --python PATH          starts this:  PATH tests/bench/cpu_peer.py THREADS
"""
import json
import math
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
torch.manual_seed(1)


class Laps:
    def __init__(self):
        self.laps, self.last = [], (time.perf_counter(), time.process_time())

    def lap(self):
        now = (time.perf_counter(), time.process_time())
        self.laps.append({"wall_s": now[0] - self.last[0], "cpu_s": now[1] - self.last[1]})
        self.last = now


def linear(inputs, outputs, dtype=torch.float32, bias=True):
    return torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def attention(qkv, heads):
    """Queries, keys and values [n, rows, 3C] in a row, as one matmul leaves them, to [n, rows, C]."""
    n, rows, width = qkv.shape
    q, k, v = (x.view(n, rows, heads, -1).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, rows, width // 3)


class EncoderLayer:
    def __init__(self, width, inner, heads, gelu):
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.fc1, self.fc2, self.heads, self.gelu = linear(width, inner), linear(inner, width), heads, gelu

    def __call__(self, x):
        x = x + self.out(attention(self.qkv(self.norm1(x)), self.heads))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate=self.gelu))


def parts(kind, rows, sequences, width, inner, heads, gelu):
    """A layer's parts, each alone."""
    layer = EncoderLayer(width, inner, heads, gelu)
    x, y, wide = torch.randn(rows, width), torch.randn(rows, width), torch.randn(rows, inner)
    qkv = torch.randn(sequences, rows // sequences, 3 * width)
    bias = torch.randn(inner)

    def products():
        F.linear(x, layer.qkv.weight), F.linear(x, layer.out.weight), F.linear(x, layer.fc1.weight), F.linear(wide, layer.fc2.weight)

    def norms():
        for norm in (layer.norm1, layer.norm2):
            x.add_(y)
            norm(x)

    return {
        f"{kind}.attention": lambda: attention(qkv, heads),
        f"{kind}.products": products,
        # The bias is the matmul's in PyTorch.
        f"{kind}.gelu": lambda: F.gelu(wide, approximate=gelu),
        f"{kind}.norms": norms,
    }


def audio():
    width, inner, heads, mels = 512, 2048, 8, 128
    layers = [EncoderLayer(width, inner, heads, "none") for _ in range(6)]
    conv1, conv2 = torch.nn.Conv1d(mels, width, 3, padding=1), torch.nn.Conv1d(width, width, 3, stride=2, padding=1)
    positions, norm = torch.randn(1500, width), torch.nn.LayerNorm(width)
    pcm, hann, filters = torch.randn(480_000) * 0.1, torch.hann_window(400), torch.rand(mels, 201)

    def window(laps):
        # As whisper.audio.log_mel_spectrogram.
        stft = torch.stft(pcm, 400, 160, window=hann, return_complex=True)
        log = torch.clamp(filters @ (stft[..., :-1].abs() ** 2), min=1e-10).log10()
        mel = (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
        laps.lap()
        x = F.gelu(conv2(F.gelu(conv1(mel[None])))).permute(0, 2, 1) + positions
        laps.lap()
        for layer in layers:
            x = layer(x)
        laps.lap()
        norm(x)
        laps.lap()

    return {"audio.window": window}, parts("audio", 1500, 1, width, inner, heads, "none")


def vision():
    width, inner, heads, frames = 1152, 4304, 16, 4
    layers = [EncoderLayer(width, inner, heads, "tanh") for _ in range(2)]
    patches, positions = torch.nn.Conv2d(3, width, 14, 14), torch.randn(729, width)
    pixels = torch.randint(0, 256, (frames, 384, 384, 3), dtype=torch.uint8)

    def run(laps):
        x = patches((pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).flatten(2).transpose(1, 2) + positions
        laps.lap()
        for layer in layers:
            x = layer(x)
        laps.lap()

    return {"vision.frames": run}, parts("vision", frames * 729, frames, width, inner, heads, "tanh")


class Decoder:
    """Two layers of Gemma 2 9B, the text cache of one answer, and a head of 1,024 rows."""

    def __init__(self, dtype):
        d, self.heads, self.kv, self.head, inner = 3584, 16, 8, 256, 14336
        plain = lambda inputs, outputs: linear(inputs, outputs, dtype, bias=False)
        self.layers = [
            dict(qkv=plain(d, (self.heads + 2 * self.kv) * self.head), out=plain(self.heads * self.head, d),
                 gate_up=plain(d, 2 * inner), down=plain(inner, d),
                 norms=[torch.nn.RMSNorm(d, eps=1e-6, dtype=dtype) for _ in range(4)],
                 keys=torch.randn(1, self.kv, 1100, self.head, dtype=dtype), values=torch.randn(1, self.kv, 1100, self.head, dtype=dtype))
            for _ in range(2)
        ]
        self.embedding, self.norm = torch.randn(1024, d, dtype=dtype), torch.nn.RMSNorm(d, eps=1e-6, dtype=dtype)
        self.at = 64
        angles = torch.arange(1100)[:, None] * 10_000 ** (-torch.arange(0, self.head, 2) / self.head)
        self.cos, self.sin = (torch.cat([f(angles)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))

    def rotated(self, x):
        a, b = x.chunk(2, dim=-1)
        return x * self.cos[self.at] + torch.cat([-b, a], -1) * self.sin[self.at]

    def attend(self, layer, qkv):
        q, k, v = (x.view(1, -1, 1, self.head) for x in qkv.split([n * self.head for n in (self.heads, self.kv, self.kv)], dim=-1))
        layer["keys"][:, :, self.at:self.at + 1], layer["values"][:, :, self.at:self.at + 1] = self.rotated(k), v
        k, v = layer["keys"][:, :, :self.at + 1], layer["values"][:, :, :self.at + 1]
        q = self.rotated(q).view(1, self.kv, self.heads // self.kv, self.head)
        scores = 50 * torch.tanh(q @ k.transpose(-1, -2) / (16 * 50))
        return (scores.float().softmax(-1).to(v.dtype) @ v).reshape(1, -1)

    def step(self):
        x = self.embedding[100:101] * math.sqrt(3584)
        for layer in self.layers:
            before, after, before_mlp, after_mlp = layer["norms"]
            x = x + after(layer["out"](self.attend(layer, layer["qkv"](before(x)))))
            gate, up = layer["gate_up"](before_mlp(x)).chunk(2, dim=-1)
            x = x + after_mlp(layer["down"](F.gelu(gate, approximate="tanh") * up))
        self.at += 1
        return 30 * torch.tanh(F.linear(self.norm(x), self.embedding).float() / 30)


def over_a_video():
    q, k, v = (torch.randn(1, 8, n, 256) for n in (2, 12_360, 12_360))
    return lambda: (50 * torch.tanh(q @ k.transpose(-1, -2) / (16 * 50))).softmax(-1) @ v


def decoder(name):
    if name == "decoder.video":
        return {}, {name: over_a_video()}
    dtype = {"decoder.f32": torch.float32, "decoder.bf16": torch.bfloat16}.get(name)
    return {}, {name: Decoder(dtype).step} if dtype else {}


def main():
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}", flush=True)
    made = {}
    for line in sys.stdin:
        name = line.strip()
        kind = name.split(".")[0]
        key = name if kind == "decoder" else kind
        if key not in made:
            made.clear()
            made[key] = decoder(name) if kind == "decoder" else {"audio": audio, "vision": vision}[kind]()
        in_laps, single = made[key]
        laps = Laps()
        if name in in_laps:
            in_laps[name](laps)
        elif name in single:
            single[name]()
            laps.lap()
        print(json.dumps(laps.laps or None), flush=True)


main()
