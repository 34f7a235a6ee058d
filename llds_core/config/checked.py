"""Frozen dataclasses that check their values when they are made, also by `replace`.

pydantic does the checking; a mistake is a `ConfigError` of one line: the key, the value seen, and
the nearest valid name or what the value should be.
"""

import dataclasses
import re
import typing
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticKnownError

from llds_core.errors import ConfigError, did_you_mean

T = TypeVar("T")
_UNKNOWN_KEY = "unexpected_keyword_argument"


def _refuse_non_numbers(value: object) -> object:
    if isinstance(value, bool | bytes):
        raise PydanticKnownError("float_type")
    return value


Number = Annotated[float, BeforeValidator(_refuse_non_numbers)]
"""A finite float. Text such as `1e-4` is one too: YAML 1.1 reads it as text."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def checked(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that refuses unknown keys and values that do not fit."""
    made: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    construct = made.__init__

    def construct_or_explain(self: T, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            # A key written wrongly is also a key that is missing: the former says more.
            errors = sorted(error.errors(), key=lambda one: one["type"] != _UNKNOWN_KEY)
            raise ConfigError(_describe(made, errors[0])) from None

    made.__init__ = construct_or_explain
    return typing.cast(type[T], made)


def _describe(cls: type, error: ErrorDetails) -> str:
    """What is wrong, the value seen, what to do."""
    kind, value, loc = error["type"], error["input"], error["loc"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)[1:]
    if kind == "value_error":  # a rule of ours, which names its keys
        return str(error["ctx"]["error"])
    if kind == "missing":
        return f'"{path}" is missing: add it'
    if kind == _UNKNOWN_KEY:
        prefix = path.removesuffix(str(loc[-1]))
        nearest = did_you_mean(str(loc[-1]), _keys(cls, loc[:-1]), prefix=prefix)
        return f'unknown key "{path}": {nearest}'
    if kind == "literal_error":
        choices = re.findall("'(.*?)'", error["ctx"]["expected"])
        return f"{path} is {value!r}: {did_you_mean(str(value), choices)}"
    wanted = error["msg"].replace("Input should", "it should").replace("tuple", "list")
    return f"{path} is {value!r}: {wanted}"


def _keys(cls: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the dataclass at `loc` in `cls`."""
    for part in loc:  # a number is an item of a tuple[Item, ...]
        cls = typing.get_args(cls)[0] if isinstance(part, int) else typing.get_type_hints(cls)[part]
    return [field.name for field in dataclasses.fields(cls)]
