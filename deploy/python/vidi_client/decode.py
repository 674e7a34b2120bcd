"""JSON or MessagePack to frozen dataclasses: unknown fields are ignored, missing ones have their default, as the protocol wants it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from .errors import ProtocolError

T = TypeVar("T")


def decode(cls: type[T], data: object) -> T:
    """The dataclass that a mapping describes.

    Raises ``ProtocolError``, which names the field, for what is missing or of another type.
    """
    return typing.cast(T, _value(cls, data, cls.__name__))


@lru_cache(maxsize=None)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(wanted: Any, data: object, where: str) -> Any:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any or wanted is object:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        if len(kinds) == 1:
            return _value(kinds[0], data, where)
        if not isinstance(data, tuple(kinds)):
            raise _wrong(" or ".join(kind.__name__ for kind in kinds), data, where)
        return data
    if dataclasses.is_dataclass(wanted):
        return _object(typing.cast(type, wanted), data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise _wrong("a list", data, where)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], item, f"{where}[{at}]") for at, item in enumerate(data))
        if len(args) != len(data):
            raise _wrong(f"{len(args)} values", data, where)
        return tuple(_value(arg, item, f"{where}[{at}]") for at, (arg, item) in enumerate(zip(args, data)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _wrong("a map", data, where)
        return {str(key): _value(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if wanted is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, wanted) or (wanted is int and isinstance(data, bool)):
        raise _wrong(wanted.__name__, data, where)
    return data


def _object(cls: type, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong("a map", data, where)
    hints, given = _hints(cls), {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.name in data:
            given[field.name] = _value(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{where} has no {field.name}", kind="protocol")
    return cls(**given)


def _wrong(wanted: str, data: object, where: str) -> ProtocolError:
    return ProtocolError(f"{where} is {data!r:.80}, not {wanted}", kind="protocol", hint="server and client may be of different times")
