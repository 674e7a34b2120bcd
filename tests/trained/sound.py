"""Plays scenes, and the log-mel windows of what is heard, on the device."""
import math

import torch
import torch.nn.functional as F

from reference import vo

MELS = vo.WHISPER_V3["num_mel_bins"]
WINDOWS_AT_ONCE = 32


@torch.no_grad()
def play(batch, generator):
    """PCM float32 [B, F*16000] on the grid of 16-bit samples, and [B]: 1 where it is not digital silence."""
    voices, device = batch["voices"], batch["voices"].device
    n = batch["duration"] * vo.SR
    envelopes = F.interpolate(batch["envelopes"], size=n + vo.HOP, mode="linear", align_corners=False)[..., :n]
    t = torch.arange(n, device=device, dtype=torch.float64) / vo.SR

    def tone(hz):
        return torch.sin((t[None] * hz[:, None].double() % 1.0).float() * (2 * math.pi))

    def noise():
        return torch.randn(len(voices), n, device=device, generator=generator)

    x = envelopes[:, 0] * tone(voices[:, 0]) * voices[:, 2, None] + envelopes[:, 1] * tone(voices[:, 1]) * voices[:, 3, None]
    x = x + envelopes[:, 2] * noise() * voices[:, 4, None] * 0.5
    x = x + noise() * voices[:, 5, None]
    x = (x.clamp(-1, 1) * 32767).round() / 32768 * voices[:, 6, None]
    return x, (x.abs().amax(1) > 0).float()


class LogMel:
    """vo.log_mel for a batch: [B,n] -> [B,W,128,3000]"""

    def __init__(self, device):
        self.filters = torch.from_numpy(vo.slaney_filterbank(vo.N_FFT // 2 + 1, MELS, vo.SR, 8000.0)).float().to(device).T.contiguous()
        self.window = torch.hann_window(vo.N_FFT, device=device)

    @torch.no_grad()
    def __call__(self, pcm):
        B, n = pcm.shape
        W = -(-n // vo.N_SAMPLES)
        x = F.pad(pcm, (0, W * vo.N_SAMPLES - n)).reshape(B * W, vo.N_SAMPLES)
        return torch.cat([self.of(part) for part in x.split(WINDOWS_AT_ONCE)]).reshape(B, W, MELS, -1)

    def of(self, x):
        spectrum = torch.stft(x, vo.N_FFT, vo.HOP, window=self.window, return_complex=True)[..., :-1]
        mel = torch.clamp(self.filters @ (spectrum.real ** 2 + spectrum.imag ** 2), min=1e-10).log10()
        mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0)
        return (mel + 4) / 4
