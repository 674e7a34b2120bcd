"""Reader of CTranslate2's model.bin (binary version 6, the layout of CTranslate2 2.0 and newer).

All integers are little endian; a string is its length with the final zero byte counted (u16), its bytes, and that zero.

    u32 binary version, string name of the specification, u32 revision of the specification
    u32 variables, each: string name, u8 rank, u32 per dimension, u8 type, u32 bytes, values row-major
    u32 aliases, each: string alias, string name of a variable
"""
import struct

import numpy as np

BINARY_VERSION = 6
# CTranslate2's DataType, in its order.  bfloat16 has no counterpart in numpy and is refused.
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError(f"model.bin: cut short, {count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, code):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self):
        text = self.take(self.number("H"))
        if text[-1:] != b"\0":
            raise ValueError(f"model.bin: a string before byte {self.at} does not end with a zero byte")
        return text[:-1].decode("utf-8")


def read(data):
    """The bytes of a model.bin -> (name of the specification, its revision, {name: array}); aliases are resolved."""
    c = Cursor(data)
    version = c.number("I")
    if version != BINARY_VERSION:
        raise ValueError(f"model.bin: binary version {version}, this reader knows {BINARY_VERSION}")
    specification, revision = c.string(), c.number("I")
    variables = {}
    for _ in range(c.number("I")):
        name = c.string()
        shape = [c.number("I") for _ in range(c.number("B"))]
        code = c.number("B")
        if code not in TYPES:
            raise ValueError(f"model.bin: {name} has type {code}, this reader knows {sorted(TYPES)}")
        dtype, size = np.dtype(TYPES[code]), c.number("I")
        if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"model.bin: {name} has {size} bytes for {shape} of {dtype}")
        variables[name] = np.frombuffer(c.take(size), dtype.newbyteorder("<")).reshape(shape)
    for _ in range(c.number("I")):
        alias, name = c.string(), c.string()
        variables[alias] = variables[name]
    if c.at != len(data):
        raise ValueError(f"model.bin: {len(data) - c.at} bytes after the last alias")
    return specification, revision, variables
