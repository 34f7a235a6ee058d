"""Every value checked once, every error one line that helps, every field read somewhere."""

import ast
import importlib.resources
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from annotated_types import Ge, Le
from run_helpers import refused

from llds_core.config import ExperimentConfig, load_experiment, methods, profiles
from llds_core.config import given as typed
from llds_core.config.given import parse_yaml
from llds_core.errors import ConfigError
from llds_core.files import project_path
from llds_core.runs.identity import flat

PACKAGE = Path(str(importlib.resources.files("llds_core")))
FIELDS = [
    (section.name, field)
    for section in fields(ExperimentConfig)
    if is_dataclass(section.type)
    for field in fields(section.type)
]
TYPES = {
    f"{section}.{key}": {hint, *get_args(hint)}
    for section, model in get_type_hints(ExperimentConfig).items()
    if is_dataclass(model)
    for key, hint in get_type_hints(model).items()
}
# Bounds of every numeric value.
BOUNDS = {
    f"{section}.{f.name}": {type(bound): bound for bound in getattr(f.default, "metadata", ())}
    for section, f in FIELDS
    if TYPES[f"{section}.{f.name}"] & {int, float}
}
FLOATS = [key for key in BOUNDS if float in TYPES[key]]
NAMES = [f"{profile}/{method}" for profile in profiles() for method in methods()]
INTEGER = "^training.steps is .*: it should be a valid integer"
NUMBER = "^training.learning_rate is .*: it should be a valid number"
BOOLEAN = "^training.warmstart is .*: it should be a valid boolean"
DICTIONARY = "training is .*: it should be a dictionary"
CISPO = "loss.surrogate=cispo loss.clip_low=1"
MICRO, SEQUENCES = "loss.aggregate=token-mean-micro", "loss.aggregate=seq-mean-token-mean"
ONE_UPDATE = "training.updates_per_rollout=1 training.epochs=1"


def failure(*overrides: str, name: str = "desk/grpo") -> str:
    return refused(ConfigError, None, load_experiment, name, overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_loads_with_every_method_and_returns_from_its_values(name: str) -> None:
    config = load_experiment(name)
    assert config.name == name
    assert ExperimentConfig(**config.to_dict()) == config


def test_method_lies_over_the_profile_and_overrides_over_both() -> None:
    plain = load_experiment("smoke/llds-action")
    changed = load_experiment("smoke/llds-action", ["loss.llds_weight=0.9", "world.cities=null"])
    assert plain.loss.llds_weight > 0 and changed.world.cities is None
    assert changed.loss == replace(plain.loss, llds_weight=0.9)


@pytest.mark.parametrize("profile", ["desk", "smoke", "paper-3b", "paper-7b-instruct"])
def test_methods_combine_with_what_a_profile_says_of_each(profile: str) -> None:
    both = load_experiment(f"{profile}/gspo+llds-action")
    assert both.loss == load_experiment(f"{profile}/gspo-llds").loss
    assert both.loss == load_experiment(f"{profile}/llds-action+gspo").loss
    assert both.method == "gspo+llds-action"
    assert load_experiment(f"{profile}/grpo+llds-token").loss.gate == "token"


def test_a_method_with_official_code_of_its_own_brings_what_that_ran() -> None:
    paper, code = (load_experiment(f"smoke/lp-reg{variant}") for variant in ("", "@official"))
    assert replace(paper, loss=code.loss, method="lp-reg@official") == code
    assert (code.loss.lp_reg_kl, code.loss.aggregate) == ("token", "token-mean-micro")
    assert (code.loss.dual_clip, paper.loss.dual_clip) == (None, 10.0)


def test_hash_changes_with_any_value_and_of_sections_with_those_only() -> None:
    base, changed = (load_experiment("desk/grpo", [f"evaluation.samples={n}"]) for n in (1, 3))
    assert base.hash() != changed.hash()
    assert base.hash("world", "policy") == changed.hash("world", "policy")
    assert base.hash("evaluation") != changed.hash("evaluation")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("desk/grop", 'unknown method "grop" in "desk/grop": did you mean "grpo"?'),
        ("dekk/grpo", 'unknown profile "dekk" in "dekk/grpo": did you mean "desk"?'),
        ("smoke/gspo+llds-acton", 'did you mean "llds-action"?'),
        (
            "smoke/llds-token+llds-action",
            "llds-token sets loss.gate=token and llds-action sets it to action: leave one",
        ),
        ("smoke/dapo+lp-reg", "dapo sets loss."),
        ("paper-3b/cispo@official", "has no cispo"),
        ("paper-3b/dr-grpo@official", "leave @official out"),
        ("paper-3b/lp-reg+llds-action@official", "has no lp-reg"),
        ("paper-3b/grpo@oficial", 'did you mean "official"?'),
        *((name, "profile/method") for name in ("", "desk", "desk/", "/")),
    ],
)
def test_unknown_experiment_names_the_nearest_or_the_form(name: str, said: str) -> None:
    assert said in failure(name=name)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-04", "1"])
def test_numbers_are_decimal_and_in_any_notation(text: str) -> None:
    config = load_experiment("smoke/grpo", ["training.steps=010", f"training.learning_rate={text}"])
    value = config.training.learning_rate
    assert value == float(text) and isinstance(value, float) and config.training.steps == 10
    found = parse_yaml("[010, 1_000, -7, 1.5e+3, .5, -.Inf]", "")
    assert found == [10, 1000, -7, 1500.0, 0.5, float("-inf")]


@pytest.mark.parametrize(
    "override",
    [
        *("training.steps", "=", "", "training.steps=[1", "loss.gate={[1]: 2}"),
        *("training={3: 4}", "method=grpo", "training.steps=2024-13-45"),
        pytest.param("training.learning_rate=" + "9" * 400, id="huge"),
        pytest.param("training.steps=" + "[" * 500, id="deep"),
    ],
)
def test_malformed_override_is_one_line(override: str) -> None:
    assert failure(override)


def test_every_numeric_value_has_a_range() -> None:
    assert [key for key, bounds in BOUNDS.items() if Ge not in bounds] == []


@pytest.mark.parametrize("key", BOUNDS)
def test_values_outside_the_range_are_refused_with_the_bound_and_non_finite_ones(key: str) -> None:
    low, high = BOUNDS[key][Ge].ge, getattr(BOUNDS[key].get(Le), "le", None)
    outside = [(low - 1, low)]
    outside += [(low / 2, low)] if low and key in FLOATS else []
    outside += [(high + 1, high)] if high is not None else []
    for value, bound in outside:
        message = failure(f"{key}={value}")
        assert f"{key} is " in message and float(message.split()[-1]) == bound
    for value in (".nan", "nan", ".inf", "-.inf", "inf") if key in FLOATS else ():
        assert f"{key} is " in failure(f"{key}={value}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("training.step=4", '^unknown key "training.step": did you mean "training.steps"'),
        ("trainin.steps=4", '^unknown key "trainin": did you mean "training"'),
        ("loss.lds_weight=1", '^unknown key "loss.lds_weight": did you mean "loss.llds_weight"'),
        ("rollout.groupsize=4", 'key "rollout.groupsize": did you mean "rollout.group_size"'),
        ("loss.gate=acton", "^loss.gate is 'acton': did you mean \"action\""),
        *((f"training.steps={value}", INTEGER) for value in ("true", "4.0", "four", "'4'", "")),
        ("training.steps.more=3", INTEGER),
        *((f"training.learning_rate={value}", NUMBER) for value in ("true", "fast")),
        *((f"training.warmstart={value}", BOOLEAN) for value in ("1", "'true'")),
        ("service.url=localhost:8000", '"localhost:8000".*service.url.*write it as http'),
        ("sampler.server_url=http://", '"http://".*sampler.server_url.*write it as http'),
        *((f"world.seed={value}", "world.seed is") for value in ("1:30", "0o10", "0x10", "1:30.5")),
        *((f"training={value}", DICTIONARY) for value in ("null", "3", "[1]", "text")),
        ("training.updates_per_rollout=7 training.epochs=1", "training.updates_per_rollout=7"),
        ("training.updates_per_rollout=2 training.epochs=4", "training.epochs=4"),
        ("training.micro_batch_size=3", "training.micro_batch_size × processes=3"),
        ("policy.heads=4 policy.key_value_heads=3", "key_value_heads=3"),
        # 30 / 2 = 15 numbers per head, which rotary positions cannot pair up.
        ("policy.hidden_size=30 policy.heads=2 policy.key_value_heads=1", "2 × policy.heads=4"),
        ("rollout.max_searches=0", "rollout.max_searches is 0"),
        (
            "training.steps=3 loss.gate=token training.steps=4",
            r"^training.steps is given twice \(training.steps=3, training.steps=4\): leave one out",
        ),
        ("training.steps=3 training.steps=3", "^training.steps is given twice"),
        ("loss.ratio=sequence loss.aggregate=token-mean", "loss.aggregate=seq-mean-token-mean"),
        (f"loss.llds_weight=0.2 {ONE_UPDATE}", "training.updates_per_rollout >= 2"),
        ("sampler.backend=vllm sampler.tensor_parallel=2", "sampler.tensor_parallel=2"),
        ("sampler.backend=vllm rollout.temperature=2.5", "rollout.temperature=2.5"),
        ("world.name=files training.warmstart=true", "training.warmstart=false"),
        ("training.save_every=2 training.resumable_every=3", "is not a multiple of training.save"),
        (f"training.max_tokens_per_micro_batch=9 {MICRO}", f"{MICRO} with .*=9: .*; set .*=null$"),
        ("loss.surrogate=cispo", "loss.clip_low=0.2.*set loss.clip_low=1.0$"),
        (
            f"{CISPO} loss.aggregate=constant",
            "loss.aggregate=constant.*set loss.aggregate=token-mean$",
        ),
        (f"{CISPO} loss.ratio=sequence {SEQUENCES}", "loss.ratio=sequence.*set loss.ratio=token$"),
        (f"{CISPO} loss.dual_clip=3", "set loss.dual_clip=null$"),
        ("loss.dual_clip=1.1", r"loss.dual_clip=1.1 cuts.*1.2"),
        ("loss.advantage_mean=batch", "set loss.advantage_std=batch or none"),
        (f"loss.mask_truncated=true {SEQUENCES}", "set loss.aggregate=token-mean"),
        (
            "rollout.sampling_rounds=2 rollout.prompts_per_rollout=3 rollout.group_size=4 "
            "hardware.processes=2 training.updates_per_rollout=1 training.epochs=1 "
            "training.micro_batch_size=3",
            "rollout.prompts_per_rollout=3 is not a multiple of processes=2",
        ),
    ],
)
def test_values_that_cannot_be_used_are_named(overrides: str, said: str) -> None:
    assert re.search(said, failure(*overrides.split()))
    # One update is fine without the penalty.
    usual = load_experiment("desk/grpo", ["loss.llds_weight=0", *ONE_UPDATE.split()])
    assert usual.training.updates_per_rollout == 1


def _reads() -> set[tuple[str, str]]:
    """Every `owner.field` read outside the configuration itself, by the owner's last name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "config":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        # `settings = config.warmstart` gives a section another name.
        aliases = {
            target.id: node.value.attr
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
                found |= {(owner, node.attr), (aliases.get(owner, owner), node.attr)}
    return found


def test_every_value_is_read_somewhere() -> None:
    """As `….section.field`, or as `config.field` where a function is handed its section alone."""
    owners, reads = {"config", "_config", "settings", "_settings", "credits"}, _reads()
    unread = [
        f"{section}.{field.name}"
        for section, field in FIELDS
        if not any((owner, field.name) in reads for owner in {section} | owners)
    ]
    assert unread == [], "use it or remove it"


def test_text_is_taken_to_the_letter() -> None:
    given = {"dense.query_prefix": "query: ", "dense.passage_prefix": "", "policy.path": "010"}
    given |= {"data.folder": "'a: [b'", "rollout.feedback": " null "}
    config = flat(load_experiment("smoke/grpo", [f"{k}={v}" for k, v in given.items()]).to_dict())
    assert {key: config[key] for key in given} == given
    for missing in ("", "null"):
        assert load_experiment("smoke/grpo", [f"dense.path={missing}"]).dense.path is None


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    keys = ("policy.path", "data.folder", "dense.encoder", "dense.path", "dense.vectors")
    values = flat(load_experiment("smoke/grpo", [f"{key}=~/x" for key in keys]).to_dict())
    assert {values[key] for key in keys} == {"/home/of/x"}
    assert project_path("~/x") == Path("/home/of/x")


@pytest.mark.parametrize("end", ["", "/", "/retrieve", "/retrieve/"])
def test_addresses_have_one_form(end: str) -> None:
    keys = ("service.url", "sampler.server_url")
    config = load_experiment("smoke/grpo", [f"{key}=http://A:1{end}" for key in keys])
    assert config.service.url == config.sampler.server_url == "http://a:1"


@pytest.mark.parametrize(
    ("text", "found"),
    [("5,6", [5, 6]), (" 5, 6,5", [5, 6]), (30, [30]), ([0, 0, 1], [0, 1]), ("0", [0])],
)
def test_seeds_are_read_as_lists(text: object, found: list[int]) -> None:
    assert typed.numbers(text) == found
    assert typed.words("a, b,a,") == typed.words(["a", "b", "a"]) == ("a", "b")


@pytest.mark.parametrize("bad", ["x", "1:30", "", -1, "-1", 2**63, [1.5], None, ["a"]])
def test_what_is_no_list_of_seeds_is_one_line(bad: object) -> None:
    refused(ConfigError, "^seed", typed.numbers, bad)
