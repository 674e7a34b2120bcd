"""The oracle, `vo`: what this package takes from tests/oracle/vidi_oracle.py instead of saying it again.

Constants and mel filters of the sound, the prompt and its tokens, the tokenizer's rules, the files of a checkpoint, and the
forward pass that ours is held against (check.py)."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracle"))

import vidi_oracle as vo  # noqa: E402

__all__ = ["vo"]
