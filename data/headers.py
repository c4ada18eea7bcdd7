"""Words of a file, read as if they came from a stranger: JSON against the annotations of a
dataclass, which so are the schema of what is kept."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

LARGEST = 2**31  # of whole numbers: the widest that every library here takes
QUOTED = 60  # characters of what is quoted from a file
CALLED = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def words(text: str | None) -> Any:
    """What a header holds as JSON; raises ValueError for what is none, or nested without end."""
    try:
        return json.loads(text or "")
    except RecursionError:
        raise ValueError("its words are nested too deeply") from None


def fitting(wanted: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type `wanted`: lists as tuples, mappings as dataclasses. Raises
    ValueError, with what does not fit by name, where it is of another."""
    if get_origin(wanted) is UnionType:
        if value is None and NoneType in get_args(wanted):
            return None
        wanted = next(each for each in get_args(wanted) if each is not NoneType)
    if get_origin(wanted) is tuple:
        return _members(get_args(wanted), value, name)
    if is_dataclass(wanted):
        return _made(wanted, value, name)
    if not _is(wanted, value):
        raise ValueError(f"{name} is {shown(value)}, and takes {CALLED[wanted]}")
    return value


def _is(wanted: type, value: Any) -> bool:
    if wanted in (bool, str) or isinstance(value, bool):
        return type(value) is wanted  # True is an int too
    if isinstance(value, int):  # a float may be written as a whole number
        return wanted in (int, float) and abs(value) < LARGEST
    return wanted is float and isinstance(value, float) and math.isfinite(value)


def _members(wanted: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """wanted: the types of the members, or one type and an ellipsis."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {shown(value)}, and takes a list")
    types = wanted[:1] * len(value) if wanted[-1] is ... else wanted
    if len(types) != len(value):
        raise ValueError(f"{name} has {len(value)} members, and takes {len(types)}")
    each = zip(types, value, strict=True)
    return tuple(fitting(one, x, f"{name} {i}") for i, (one, x) in enumerate(each))


def _made(wanted: Any, value: Any, name: str) -> Any:
    names = {field.name for field in fields(wanted)}
    if not isinstance(value, Mapping) or value.keys() != names:
        raise ValueError(f"{name} does not hold {', '.join(sorted(names))}")
    hints = get_type_hints(wanted)
    return wanted(**{n: fitting(hints[n], value[n], f"{name}.{n}") for n in names})


def shown(value: object, most: int = QUOTED) -> str:
    """A value from a file as a sentence may quote it: short, and with nothing unprintable."""
    if isinstance(value, list | tuple | Mapping):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    said = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return said if len(said) <= most else f"{said[:most]}..."
