"""Every metric of a step, defined once, in `presets/metrics.yaml`."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import yaml


@dataclass(frozen=True)
class Metric:
    """Unit and meaning of one column of `metrics.jsonl`, and the policy it is measured under."""

    unit: str
    policy: Literal["old", "new", "during", "none"]
    meaning: str


_TEXT = (files("llds_core") / "presets/metrics.yaml").read_text("utf-8")
METRICS = {name: Metric(*values) for name, values in yaml.safe_load(_TEXT).items()}
