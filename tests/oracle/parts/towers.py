"""Pixels and mel spectrograms, and the two towers; the same for both families (MODEL.md 2, 3 and 5)."""
import numpy as np
import torch
import torch.nn.functional as F

from .blocks import attention, heads, layer_norm, linear


def preprocess_frames(frames, size, stop=None):
    """uint8 [F,H,W,3] RGB -> float32 [F,3,size,size].

    Pillow bicubic resize to size x size (aspect ratio is NOT kept), then
    float32(v * 0.00392156862745098 in float64), then (x - 0.5) / 0.5 in float32."""
    from PIL import Image
    out = np.empty((len(frames[:stop]), 3, size, size), np.float32)
    for i, fr in enumerate(frames[:stop]):
        im = Image.fromarray(np.ascontiguousarray(fr)).convert("RGB").resize((size, size), resample=Image.BICUBIC)
        x = (np.asarray(im).astype(np.float64) * 0.00392156862745098).astype(np.float32)
        out[i] = ((x - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)
    return torch.from_numpy(out)


def slaney_filterbank(n_freq, n_mels, sr, fmax):
    """Triangular Slaney-scale, Slaney-normalised mel filters, float64 [n_freq, n_mels]."""
    def hz_to_mel(f):
        f = np.asarray(f, np.float64)
        return np.where(f >= 1000.0, 15.0 + np.log(np.maximum(f, 1e-30) / 1000.0) * (27.0 / np.log(6.4)), 3.0 * f / 200.0)

    def mel_to_hz(m):
        return np.where(m >= 15.0, 1000.0 * np.exp((np.log(6.4) / 27.0) * (m - 15.0)), 200.0 * m / 3.0)

    edges = mel_to_hz(np.linspace(hz_to_mel(0.0), hz_to_mel(fmax), n_mels + 2))
    freqs = np.linspace(0, sr // 2, n_freq)
    width = np.diff(edges)
    slope = edges[None, :] - freqs[:, None]
    fb = np.maximum(0.0, np.minimum(-slope[:, :-2] / width[:-1], slope[:, 2:] / width[1:]))
    return fb * (2.0 / (edges[2:] - edges[:-2]))[None, :]


SR, N_SAMPLES, HOP, N_FFT = 16000, 480000, 160, 400


def log_mel(pcm, n_mels):
    """float32 PCM [n] -> (mel float32 [W, n_mels, 3000], total number of 10 ms frames)."""
    chunks = [pcm[i:i + N_SAMPLES] for i in range(0, len(pcm), N_SAMPLES)]
    n_frames = sum(len(c) // HOP for c in chunks)
    fb = torch.from_numpy(slaney_filterbank(N_FFT // 2 + 1, n_mels, SR, 8000.0)).float()
    win = torch.hann_window(N_FFT)
    out = []
    for c in chunks:
        x = torch.zeros(N_SAMPLES)
        x[:len(c)] = torch.from_numpy(np.asarray(c, np.float32))
        spec = torch.stft(x, N_FFT, HOP, window=win, return_complex=True)   # centre, reflect pad 200
        power = spec[:, :-1].abs() ** 2                                        # drop frame 3000
        m = torch.clamp(fb.T @ power, min=1e-10).log10()
        m = torch.maximum(m, m.max() - 8.0)                                    # max over this 30 s window
        out.append((m + 4.0) / 4.0)
    return torch.stack(out), n_frames


def vision_tower(w, cfg, px, batch=8, keep_layers=None):
    """[F,3,S,S] -> [F, n_patches, C] = output of encoder layer (n_layers + select_layer),
    i.e. hidden_states[-2]; no post_layernorm, no pooling head, last encoder layer never run."""
    c, p = cfg.vis, "model.mm_vis.vision_model."
    sel = cfg.mm_vision_select_layer
    n_run = c.num_hidden_layers + 1 + sel if sel < 0 else sel
    nh = c.num_attention_heads
    outs = []
    for b0 in range(0, len(px), batch):
        x = px[b0:b0 + batch].to(w.dtype)
        x = F.conv2d(x, w[p + "embeddings.patch_embedding.weight"], w[p + "embeddings.patch_embedding.bias"], stride=c.patch_size)
        x = x.flatten(2).transpose(1, 2) + w[p + "embeddings.position_embedding.weight"]
        if keep_layers is not None and b0 == 0:
            keep_layers["vision_embed_frame0"] = x[0].clone()
        for i in range(n_run):
            q = f"{p}encoder.layers.{i}."
            h = layer_norm(w, q + "layer_norm1", x, c.layer_norm_eps)
            Q, K, V = (linear(w, f"{q}self_attn.{n}_proj", h) for n in "qkv")
            a = torch.stack([attention(heads(Q[b], nh), heads(K[b], nh), heads(V[b], nh), (Q.shape[-1] // nh) ** -0.5)
                             for b in range(x.shape[0])])
            x = x + linear(w, q + "self_attn.out_proj", a)
            h = layer_norm(w, q + "layer_norm2", x, c.layer_norm_eps)
            x = x + linear(w, q + "mlp.fc2", F.gelu(linear(w, q + "mlp.fc1", h), approximate="tanh"))
            if keep_layers is not None and b0 == 0:
                keep_layers[f"vision_layer{i}_frame0"] = x[0].clone()
        outs.append(x)
    return torch.cat(outs)


def audio_tower(w, cfg, mel, keep_layers=None):
    """[W, n_mels, 3000] -> [W, 1500, C] (Whisper encoder incl. final layer_norm)."""
    c, p = cfg.aud, "model.mm_aud.encoder."
    nh, eps = c.encoder_attention_heads, 1e-5
    outs = []
    for b in range(len(mel)):
        x = mel[b:b + 1].to(w.dtype)
        assert x.shape[-1] == 2 * c.max_source_positions
        x = F.gelu(F.conv1d(x, w[p + "conv1.weight"], w[p + "conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, w[p + "conv2.weight"], w[p + "conv2.bias"], stride=2, padding=1))
        x = x[0].T + w[p + "embed_positions.weight"]
        if keep_layers is not None and b == 0:
            keep_layers["audio_embed_window0"] = x.clone()
        for i in range(c.encoder_layers):
            q = f"{p}layers.{i}."
            h = layer_norm(w, q + "self_attn_layer_norm", x, eps)
            Q, K, V = (linear(w, f"{q}self_attn.{n}_proj", h) for n in "qkv")       # k_proj has no bias
            a = attention(heads(Q, nh), heads(K, nh), heads(V, nh), (Q.shape[-1] // nh) ** -0.5)
            x = x + linear(w, q + "self_attn.out_proj", a)
            h = layer_norm(w, q + "final_layer_norm", x, eps)
            x = x + linear(w, q + "fc2", F.gelu(linear(w, q + "fc1", h)))
            if x.dtype == torch.float16 and not torch.isfinite(x).all():
                lim = torch.finfo(torch.float16).max - 1000
                x = x.clamp(-lim, lim)
            if keep_layers is not None and b == 0:
                keep_layers[f"audio_layer{i}_window0"] = x.clone()
        outs.append(layer_norm(w, p + "layer_norm", x, eps))
    return torch.stack(outs)
