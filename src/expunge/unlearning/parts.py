"""Values from a command line or a recipe laid over the fields of a part, with types and names checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from expunge.errors import InputError, nearest

T = TypeVar("T")


def build(part: type[T], settings: Mapping[str, object], where: str = "") -> T:
    """`part(**settings)`; lists become tuples and whole numbers floats where the field wants that, nothing else.

    Raises:
        InputError: a name is unknown (the nearest is given), a type is wrong, or a required field is missing.
    """
    hints = get_type_hints(part)
    names = field_names(part)
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in names:
            raise InputError(f"{part.__name__} has no setting {name!r}.", where, nearest(name, names))
        values[name] = _typed(hints[name], value, f"{where}.{name}" if where else name)
    try:
        return part(**values)
    except TypeError as error:
        raise InputError(f"{part.__name__} needs more settings: {error}.", where) from error


def changed(part: T, settings: Mapping[str, object], where: str = "") -> T:
    """A copy of `part` with `settings` laid over its fields, checked as in `build`."""
    return build(type(part), {**current(part), **settings}, where) if settings else part


def current(part: object) -> dict[str, object]:
    """The settings of `part` by name."""
    return {name: getattr(part, name) for name in field_names(type(part))}


def field_names(part: type) -> tuple[str, ...]:
    """Names of the fields that can be set."""
    return tuple(field.name for field in fields(part) if field.init)


def _typed(hint: Any, value: object, where: str) -> Any:
    # Strict JSON rules are those of a person's input: a list is a tuple, 1 is a float, but "1" and true are no numbers.
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        wanted = str(hint.__name__ if isinstance(hint, type) else hint).replace("typing.", "")
        raise InputError(f"This setting has the wrong type: {value!r} is not {wanted}.", where) from error
