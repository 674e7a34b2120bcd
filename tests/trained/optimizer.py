"""Muon for the matrices, AdamW for all else."""
import math

import torch

MUON_STEPS = 5
MUON_COEFFICIENTS = 3.4445, -4.7750, 2.0315         # of the Newton-Schulz polynomial, Keller Jordan's


def orthogonalized(x):
    """[n,r,c] -> about U V^T of each one's U S V^T, in bf16."""
    a, b, c = MUON_COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(MUON_STEPS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum, all matrices of one shape at once.  Updates have the size of AdamW's, so both share a rate."""

    def __init__(self, params, lr, weight_decay=0.01, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self.update(params, group)

    def update(self, params, group):
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = [self.state[p]["momentum"] for p in params]
        gradients = [p.grad for p in params]
        torch._foreach_mul_(momentum, group["momentum"])
        torch._foreach_add_(momentum, gradients)
        ahead = torch.stack([g + group["momentum"] * m for g, m in zip(gradients, momentum)])
        x = orthogonalized(ahead.bfloat16()).float()
        x = x * (0.2 * math.sqrt(max(x.shape[1], x.shape[2])))
        for p, change in zip(params, x):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])


def is_muon(name, parameter):
    return parameter.ndim == 2 and "embed" not in name


class Optimizers:
    """Both, as one: they share rate, clipping and steps."""

    def __init__(self, named, more, rate, clip=1.0):
        """named: {name: parameter} of the model; more: other parameters, for AdamW."""
        muon = [p for n, p in named.items() if is_muon(n, p)]
        rest = [p for n, p in named.items() if not is_muon(n, p)]
        fused = rest[0].device.type == "cuda"
        self.both = [torch.optim.AdamW(rest + list(more), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused), Muon(muon, rate)]
        self.params = muon + rest + list(more)
        self.rate, self.clip = rate, clip

    def step(self, factor):
        """One step at `factor` of the full rate -> the gradients' norm before clipping"""
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        for optimizer in self.both:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
        self.forget()
        return norm

    def forget(self):
        for optimizer in self.both:
            optimizer.zero_grad(set_to_none=True)
