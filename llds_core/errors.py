"""Errors a user can cause, each with one line that says what is wrong, the value seen and what to
do.

Every class is also the matching standard type, so that callers may catch either. The command line
prints the message of an `LLDSError` on a single line and exits with code 2; any other exception is
a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class LLDSError(Exception):
    """Base of all errors that `llds_core` raises on purpose."""


class ConfigError(LLDSError, ValueError):
    """A configuration value, key, profile or method that cannot be used."""


class DataError(LLDSError, ValueError):
    """A corpus, question set or other data file that cannot be read as what it claims to be."""


class CheckpointError(LLDSError, OSError):
    """A checkpoint that is missing, truncated or belongs to another model."""


class RunError(LLDSError, RuntimeError):
    """A run directory in use, read-only, out of space or of another configuration."""


class DownloadError(LLDSError, OSError):
    """A file that the model hub does not give: unreachable, gated, unknown or not as announced."""


class RetrieverError(LLDSError, ConnectionError):
    """A retriever service that gave no valid answer, however often it was asked."""


class RetrieverChangedError(RetrieverError):
    """A retriever service that searches something else than it did, or than it should."""


class SamplerError(LLDSError, RuntimeError):
    """A sampler that cannot be used, or that answered with something the protocol does not know."""


class TrainingDivergedError(LLDSError, ArithmeticError):
    """Loss or gradient stayed non-finite for the configured number of updates in a row."""


def one_line(error: object, longest: int = 120) -> str:
    """What an error of a library says, on one line and shortened."""
    return " ".join(str(error).split())[:longest]


def did_you_mean(name: str, valid: Iterable[str], *, prefix: str = "") -> str:
    """A hint for an unknown `name`: the nearest valid one with its `prefix`, then all of them."""
    names = sorted(valid)
    close = closest(name, names)
    nearest = f'did you mean "{prefix}{close}"? ' if close else ""
    return f"{nearest}valid: {', '.join(names)}"


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most like `name`, None when none is; swapped letters come first."""
    close = difflib.get_close_matches(name, sorted(valid), n=3, cutoff=0.5)
    return min(close, key=lambda other: sorted(other) != sorted(name), default=None)
