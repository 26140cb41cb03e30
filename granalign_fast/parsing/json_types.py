"""Whether JSON values have the types that a record's fields are annotated with."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin, get_type_hints


def matches(annotation: Any, value: Any) -> bool:
    """Return whether a JSON value has the type of an annotation.

    Args:
        annotation: `Any`, a class, ``list[...]``, ``dict[str, ...]``, or a union of these. An
            integer is a float as well; true and false are no numbers.
        value: of JSON.
    """
    container, inner = get_origin(annotation), get_args(annotation)
    if container in (Union, types.UnionType):
        return any(matches(one, value) for one in inner)
    if container is dict:
        return isinstance(value, dict) and all(matches(inner[1], one) for one in value.values())
    if container is list:
        return isinstance(value, list) and all(matches(inner[0], item) for item in value)
    if annotation in (None, type(None)):
        return value is None
    return annotation is Any or type(value) in (
        (int, float) if annotation is float else (annotation,)
    )


def wrong_field(kind: type, record: object) -> str | None:
    """Return the first field of a dataclass whose value in a record has another type.

    Args:
        kind: the dataclass; what the record lacks or has besides is not looked at.
        record: an object of it, or a JSON object.
    """
    values = record if isinstance(record, dict) else {n: getattr(record, n) for n in _names(kind)}
    hints = get_type_hints(kind)
    wrong = (
        name for name in _names(kind) if name in values and not matches(hints[name], values[name])
    )
    return next(wrong, None)


def _names(kind: Any) -> list[str]:
    return list(kind.__dataclass_fields__)
