"""What users type, anywhere, brought to one form: lists, addresses, paths, names, YAML."""

import re
from collections.abc import Iterable
from os.path import expanduser
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from llds_core.errors import ConfigError, one_line

MOST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
FilePath = Annotated[str, AfterValidator(expanduser)]
"""Text that names a file or a folder; it may begin with `~`."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.@+-]*$")]
"""A name that becomes part of paths, and never is one."""
_SEEDS = TypeAdapter(list[Seed])
_URL = TypeAdapter(AnyHttpUrl)


def words(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names as a list, or as text with commas; a repeat counts once."""
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, Iterable) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"{given!r} is no list of names: write them with commas between")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def numbers(given: str | int | Iterable[int]) -> list[int]:
    """Seeds as a list, as one number, or as text with commas; a repeat counts once."""
    parts = str(given).split(",") if isinstance(given, str | int) else given
    try:
        return list(dict.fromkeys(_SEEDS.validate_python(parts)))
    except ValidationError:
        raise ConfigError(
            f"seeds (--seeds) are {given!r}: give numbers from 0 to {MOST_SEED} separated by "
            "commas, e.g. 0,1,2"
        ) from None


def address(url: str) -> str:
    """A service's address as `http://host:port`, without Search-R1's `/retrieve` at its end."""
    try:
        parts = _URL.validate_python(url)
    except ValidationError:
        raise ConfigError(
            f'the address "{url}" (service.url, sampler.server_url) is none: write it as '
            "http://127.0.0.1:8000"
        ) from None
    below = str(parts.path).rstrip("/").removesuffix("/retrieve").rstrip("/")
    return f"{parts.scheme}://{parts.host}:{parts.port}{below}"


Address = Annotated[str, AfterValidator(address)]
"""Where a service is."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # its stubs are a package of their own
    """YAML whose numbers are decimal: in YAML 1.1, 010 is eight and 1:30 is ninety."""


_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[iInN])", "", node.value))
)


def parse_yaml(text: str | bytes, what: str) -> Any:
    """The value of a YAML text, in UTF-8 if bytes; `what` names it in the error."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid YAML ({one_line(error)}): correct it") from error
