"""Write units/units_7b.safetensors: vectors for single functions of Vidi 7B.

    OMP_NUM_THREADS=1 python make_units_7b.py --out ../golden/units
"""
import argparse
import math
import os

import torch
from safetensors.torch import save_file

import vidi_oracle as vo

SIDE = 27                                                    # patches a side
POOLS = (2, 5, 7, 9, 10, 14, 26, 27)
WIDTH = 4096


def pools():
    """The image pool's input, and its weights and output for several sizes."""
    g = torch.Generator().manual_seed(6)
    T = {"pool_in": torch.randn(1, SIDE * SIDE, 3, generator=g)}
    for s in POOLS:
        k = vo.pool_kernel(SIDE, s)
        kernel = torch.randn(4, 3, k, k, generator=g) / math.sqrt(3 * k * k)
        w = {"model.mm_rand_img_pool.conv.weight": kernel}
        T[f"pool_weight_s{s}"] = kernel
        T[f"pool_out_s{s}"] = vo.MISTRAL.image_pool(w, vo.Config(mm_image_pool_size=s), T["pool_in"], SIDE)
    return T


def positions():
    """The fractional sinusoid at the real width."""
    div = torch.exp(torch.arange(0, WIDTH, 2, dtype=torch.float) * -(math.log(10000.0) / WIDTH))
    T = {f"div_term_{WIDTH}": div}
    for length, n in ((5, 5), (26, 26), (3600, 10000)):
        p = torch.arange(length, dtype=torch.float32) / (length - 1) * (n - 1)
        ang = p[:, None] * div
        rows = torch.stack([torch.sin(ang), torch.cos(ang)], -1).reshape(length, WIDTH)
        T[f"pos_sincos_l{length}_n{n}_rows"] = rows[[1, length - 1]]
    return T


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    out = ap.parse_args().out
    torch.set_num_threads(1)
    tensors = os.path.join(out, "units_7b.safetensors")
    save_file({k: v.contiguous().clone() for k, v in {**pools(), **positions()}.items()}, tensors)
    os.chmod(tensors, 0o644)


if __name__ == "__main__":
    main()
