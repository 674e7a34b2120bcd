"""Golden values for the resize tests: SHA-256 of Pillow's output for pictures made by a formula.

    python make_resize.py > resize.json

Every case is [name, width, height, content]; tests/resize.rs makes the same pictures.

Pillow 13 starts with the vertical pass where that is cheaper (portrait pictures); every release before that, and so
the reference's, starts with the horizontal one. Two calls, one for each pass, give that order with any release.
"""

import hashlib
import json

import numpy as np
import PIL
from PIL import Image

SIDE = 384

CASES = [
    ("full hd", 1920, 1080, "smooth"),
    ("full hd noise", 1920, 1080, "noise"),
    ("hd", 1280, 720, "smooth"),
    ("hd graphics", 1280, 720, "graphics"),
    ("portrait", 720, 1280, "graphics"),
    ("odd", 853, 479, "noise"),
    ("odd and small", 101, 33, "noise"),
    ("one pixel", 1, 1, "noise"),
    ("two by three", 2, 3, "graphics"),
    ("half", 192, 192, "noise"),
    ("a little smaller", 383, 385, "graphics"),
    ("identity", 384, 384, "noise"),
    ("only width", 1000, 384, "graphics"),
    ("only height", 384, 1000, "graphics"),
    ("wide and thin", 7680, 5, "noise"),
    ("tall and thin", 3, 4321, "graphics"),
]


def picture(width, height, content):
    """uint8 [height, width, 3]; the formulas are those of tests/resize.rs."""
    if content == "noise":
        # The high bytes of a linear congruential generator (Numerical Recipes), one step a value.
        count = width * height * 3
        state = np.uint32(12345)
        steps = np.empty(count, np.uint32)
        a, c = np.uint32(1664525), np.uint32(1013904223)
        # x[n] = a^n x[0] + c (a^n - 1) / (a - 1), by doubling.
        block = np.array([a * state + c], np.uint32)
        power, offset = a, c
        while len(block) < count:
            block = np.concatenate([block, block * power + offset])
            offset = offset * power + offset
            power = power * power
        steps[:] = block[:count]
        return (steps >> np.uint32(24)).astype(np.uint8).reshape(height, width, 3)
    y, x, k = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    if content == "smooth":
        value = (x * (k + 1) * 255 // width + y * (3 - k) * 255 // height + x * y // 997) % 511
        return np.where(value > 255, 510 - value, value).astype(np.uint8)
    cell = (x // 5 + y // 3 * 7 + k * 11) * 2654435761 % 2**32 >> 31
    return (cell * 255).astype(np.uint8)


def main():
    np.seterr(over="ignore")
    cases = []
    for name, width, height, content in CASES:
        image = Image.fromarray(picture(width, height, content))
        narrowed = image.resize((SIDE, height), Image.BICUBIC)
        out = np.asarray(narrowed.resize((SIDE, SIDE), Image.BICUBIC))
        cases.append(
            {
                "name": name,
                "width": width,
                "height": height,
                "content": content,
                "input": hashlib.sha256(image.tobytes()).hexdigest(),
                "output": hashlib.sha256(out.tobytes()).hexdigest(),
            }
        )
    print(json.dumps({"pillow": PIL.__version__, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
