"""Keys and numbers of the frameworks, as the reader knows them."""

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from llds_core.monitor.log_formats import KEYS, how_to_log, to_number
from llds_core.monitor.training_log import to_log

PRESETS = Path(str(files("llds_core"))) / "presets"


def test_numbers_as_frameworks_write_them() -> None:
    texts = {"0.2": 0.2, "np.float32(1e-05)": 1e-5, "tensor(-3., device='cuda:0')": -3.0}
    assert {text: to_number(text) for text in texts} == texts
    assert all(to_number(value) is None for value in ("", None, "None", True, [1], "abc", {}))
    assert math.isnan(to_number("nan")) and to_number("-inf") == -math.inf
    assert to_number(10**400) == math.inf
    assert (to_number(np.float32(0.5)), to_number(np.int64(3))) == (0.5, 3.0)


def test_every_metric_says_how_it_is_logged() -> None:
    from llds_core.monitor.detectors import DETECTORS

    derived = {"nonfinite": None, "updates_per_rollout": "updates"}
    columns = {derived.get(c, c) for d in DETECTORS.values() for c in d.columns} - {None}
    assert columns <= KEYS.keys()
    assert all(len(how_to_log(metric, "verl")) > 10 for metric in columns | {"reward"})


def test_keys_of_trl_are_those_of_its_code() -> None:
    """The preferred key of each metric; older names follow it in the preset."""
    import inspect

    import transformers.trainer
    import yaml
    from trl.trainer import grpo_trainer

    preset = yaml.safe_load((PRESETS / "log_keys.yaml").read_text("utf-8"))["metrics"]
    code = inspect.getsource(grpo_trainer) + inspect.getsource(transformers.trainer)
    preferred = {keys["trl"][0] for keys in preset.values() if "trl" in keys}
    ours = {"llds/penalty", "llds/loglik_rewarded"}  # of `LLDSGRPOTrainer`
    assert {key for key in preferred - ours if f'"{key}"' not in code} == set()
    assert len(preferred) >= 10


def test_a_metric_may_be_one_key_over_another() -> None:
    keys = ("actor/llds/loglik", "actor/llds/rewarded_tokens")
    rows = [dict(zip(keys, pair, strict=True)) for pair in ((-7.0, 35), ("-8", "20"), (-1.0, 0))]
    log = to_log([row | {"step": n, "actor/entropy": 0.1} for n, row in enumerate(rows)], "log")
    assert log.framework == "verl"
    assert log.column("loglik_correct") == pytest.approx([-0.2, -0.4, math.nan], nan_ok=True)
    assert log.keys["loglik_correct"] == " / ".join(keys)
