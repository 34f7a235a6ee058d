"""Key names of the frameworks, and how they print numbers: `presets/log_keys.yaml` as a table."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from numbers import Real
from typing import Any

import yaml

_PRESET = yaml.safe_load((files("llds_core") / "presets/log_keys.yaml").read_text("utf-8"))
STEP_KEYS: tuple[str, ...] = tuple(_PRESET["steps"])
NEARLY: dict[str, str] = _PRESET["nearly"]
_HOW: dict[str, dict[str, str]] = _PRESET["how"]
# Keys by metric, the preferred one first, and the frameworks that use a key.
KEYS: dict[str, list[str]] = {}
_FRAMEWORKS: dict[str, list[str]] = {}
for _metric, _by_framework in _PRESET["metrics"].items():
    for _framework, _keys in _by_framework.items():
        for _key in _keys:
            KEYS.setdefault(_metric, []).append(_key)
            _FRAMEWORKS.setdefault(_key, []).append(_framework)
KNOWN = {*_FRAMEWORKS, *STEP_KEYS, "epoch"}
# `np.float64(0.2)`, `tensor(0.3, device='cuda:0')`
_WRAPPED = re.compile(r"^[\w.]+\(\s*([-+.\w]+)")


def to_number(value: Any) -> float | None:
    """A number as frameworks log it, text included; None where nothing was measured.

    `nan` and `inf`, in whatever spelling, stay what they are: they were measured.
    """
    if isinstance(value, str):
        text = value.strip()
        wrapped = _WRAPPED.match(text)
        try:
            return float(wrapped[1] if wrapped else text)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def named(row: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """The metrics of a logged row by our names, each with the key it was read from."""
    found: dict[str, tuple[str, float]] = {}
    for metric, keys in KEYS.items():
        for key in keys:
            if key in row and (value := to_number(row[key])) is not None:
                found[metric] = (key, value)
                break
    return found


def step_of(row: Mapping[str, Any]) -> float | None:
    """The step of a logged row; None where it names none."""
    values = (to_number(row[key]) for key in STEP_KEYS if key in row)
    return next((value for value in values if value is not None and abs(value) < 2**53), None)


def framework_of(keys: Mapping[str, str]) -> str:
    """The framework that uses most of the keys read; in doubt the one listed first."""
    votes = Counter(name for key in keys.values() for name in _FRAMEWORKS[key])
    return votes.most_common(1)[0][0]


def how_to_log(metric: str, framework: str) -> str:
    """What to set, or to log, for a metric that a log lacks."""
    known = _HOW[metric]
    return known.get(framework, known["any"])
