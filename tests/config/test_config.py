"""Every value checked once, every error one line that helps, every field read somewhere."""

import ast
import dataclasses
import importlib.resources
import itertools
import re
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.config import ExperimentConfig, load_experiment, methods, profiles
from llds_core.config import checks as config_checks
from llds_core.errors import ConfigError, did_you_mean

PACKAGE = Path(str(importlib.resources.files("llds_core")))
SECTIONS = [
    field for field in dataclasses.fields(ExperimentConfig) if dataclasses.is_dataclass(field.type)
]
FIELDS = [
    (section.name, field) for section in SECTIONS for field in dataclasses.fields(section.type)
]
NUMERIC = {
    f"{section}.{f.name}": f
    for section, f in FIELDS
    if {int, float} & {f.type, *typing.get_args(f.type)}
}


def failure(*overrides: str, name: str = "desk/grpo") -> str:
    """The one-line message of a configuration that cannot be loaded."""
    with pytest.raises(ConfigError) as error:
        load_experiment(name, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


# Presets


@pytest.mark.parametrize("name", [f"{p}/{m}" for p, m in itertools.product(profiles(), methods())])
def test_every_profile_loads_with_every_method(name: str) -> None:
    config = load_experiment(name)
    assert config.name == name


@pytest.mark.parametrize("name", [f"{p}/{m}" for p, m in itertools.product(profiles(), methods())])
def test_yaml_round_trip_of_every_preset(name: str) -> None:
    config = load_experiment(name)
    assert ExperimentConfig.from_yaml(config.to_yaml()) == config


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0, 1),
    learning_rate=st.floats(0, 1),
    path=st.none() | st.text(max_size=20),
    cities=st.none() | st.integers(1, 10**6),
    kl=st.floats(0, 1e300),
    ramp=st.sampled_from(["none", "paper", "code"]),
)
def test_yaml_round_trip_of_any_values(rate, learning_rate, path, cities, kl, ramp) -> None:
    base = load_experiment("desk/grpo")
    config = dataclasses.replace(
        base,
        world=dataclasses.replace(base.world, cities=cities),
        policy=dataclasses.replace(base.policy, path=path),
        retrieval=dataclasses.replace(base.retrieval, failure_rate=rate),
        training=dataclasses.replace(base.training, learning_rate=learning_rate),
        loss=dataclasses.replace(base.loss, kl_weight=kl, answer_ramp=ramp),
    )
    again = ExperimentConfig.from_yaml(config.to_yaml())
    assert again == config and again.hash() == config.hash()


def test_method_lies_over_the_profile_and_overrides_over_both() -> None:
    plain = load_experiment("smoke/llds-action")
    changed = load_experiment("smoke/llds-action", ["loss.llds_weight=0.7", "loss.llds_weight=0.9"])
    assert plain.loss.llds_weight > 0 and changed.loss.llds_weight == 0.9
    assert changed.loss == dataclasses.replace(plain.loss, llds_weight=0.9)


def test_null_clears_an_optional_value() -> None:
    assert load_experiment("desk/grpo", ["world.cities=null"]).world.cities is None


def test_sizes_are_derived_from_the_configuration() -> None:
    """4 prompts × 4 samples, twice over in 4 updates: 16 trajectories a rollout, 8 an update."""
    config = load_experiment(
        "smoke/grpo",
        [
            "rollout.prompts_per_rollout=4",
            "rollout.group_size=4",
            "training.epochs=2",
            "training.updates_per_rollout=4",
        ],
    )
    assert (config.trajectories_per_rollout, config.mini_batch_size) == (16, 8)


# Hashes


def test_hash_changes_with_any_value() -> None:
    base = load_experiment("desk/grpo")
    changed = load_experiment("desk/grpo", ["evaluation.samples=3"])
    assert base.hash() != changed.hash()


def test_hash_of_sections_sees_only_those() -> None:
    base = load_experiment("desk/grpo")
    changed = load_experiment("desk/grpo", ["evaluation.samples=3"])
    assert base.hash("world", "policy") == changed.hash("world", "policy")
    assert base.hash("evaluation") != changed.hash("evaluation")


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("desk/grop", "desk/grpo"),
        ("dekk/grpo", "desk/grpo"),
        ("smoke/llds-acton", "smoke/llds-action"),
        ("smok/llds-action", "smoke/llds-action"),
    ],
)
def test_unknown_experiment_names_the_nearest(name: str, nearest: str) -> None:
    assert f'did you mean "{nearest}"?' in failure(name=name)


def test_one_slip_in_the_method_names_a_valid_experiment() -> None:
    suggested = re.search(r'did you mean "(.*?)"', failure(name="desk/gpro"))[1]
    assert load_experiment(suggested).profile == "desk"


def test_slips_in_profile_and_method_name_a_valid_experiment() -> None:
    suggested = re.search(r'did you mean "(.*?)"', failure(name="dekk/grop"))[1]
    assert load_experiment(suggested).name == "desk/grpo"


@pytest.mark.parametrize("name", ["", "desk", "desk/", "/"])
def test_name_of_another_form_shows_the_form(name: str) -> None:
    assert "profile/method" in failure(name=name)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.step=4", "training.steps"),
        ("trainin.steps=4", "training"),
        ("loss.lds_weight=1", "loss.llds_weight"),
        ("rollout.groupsize=4", "rollout.group_size"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    message = failure(override)
    assert f'unknown key "{override.split("=")[0].split(".steps")[0]}' in message
    assert f'did you mean "{nearest}"?' in message


def test_unknown_choice_names_the_nearest() -> None:
    message = failure("loss.gate=acton")
    assert "loss.gate is 'acton'" in message and 'did you mean "action"?' in message


def test_hint_without_a_close_name_lists_all() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "valid: a, b"


# Types


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-04"])
def test_number_in_any_notation_is_a_float(text: str) -> None:
    value = load_experiment("desk/grpo", [f"training.learning_rate={text}"]).training.learning_rate
    assert value == 1e-4 and isinstance(value, float)


def test_whole_number_for_a_float_becomes_one() -> None:
    value = load_experiment("desk/grpo", ["rollout.temperature=1"]).rollout.temperature
    assert isinstance(value, float)


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=true",
        "training.steps=4.0",
        "training.steps=four",
        "training.steps=1e1",
        "training.steps=[4]",
        "training.steps=",
        "training.learning_rate=true",
        "training.learning_rate=fast",
        "training.learning_rate=null",
        "training.learning_rate={a: 1}",
        "policy.path=3",
        "training.steps.more=3",
    ],
)
def test_wrong_type_names_key_and_type(override: str) -> None:
    key = ".".join(override.split("=")[0].split(".")[:2])
    assert re.search(rf"{key} is .*it takes a value of type (int|float|str)", failure(override))


@pytest.mark.parametrize("value", ["null", "3", "[1]", "text"])
def test_value_in_place_of_a_section_is_refused(value: str) -> None:
    assert "not a section" in failure(f"training={value}")


@pytest.mark.parametrize(
    "override", ["training.steps", "=", "", "training.steps=[1", "loss.gate={[1]: 2}"]
)
def test_malformed_override_is_one_line(override: str) -> None:
    assert failure(override)


@pytest.mark.parametrize(
    "override",
    [
        pytest.param(
            "training.steps=2024-13-45",
        ),
        pytest.param(
            "training.learning_rate=" + "9" * 400,
        ),
        pytest.param(
            "training.steps=" + "[" * 3000,
        ),
    ],
    ids=["date", "huge", "deep"],
)
def test_odd_yaml_value_is_a_configuration_error(override: str) -> None:
    assert failure(override)


def test_missing_name_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="method"):
        ExperimentConfig.from_yaml("profile: desk")


# Ranges


def test_every_numeric_value_has_a_range() -> None:
    assert set(config_checks.RANGES) == set(NUMERIC)


@pytest.mark.parametrize("key", sorted(key for key, f in NUMERIC.items() if "float" in str(f.type)))
@pytest.mark.parametrize("value", [".nan", "nan", ".inf", "-.inf", "inf"])
def test_non_finite_values_are_refused(key: str, value: str) -> None:
    assert f"{key} is " in failure(f"{key}={value}")


@pytest.mark.parametrize("key", sorted(config_checks.RANGES))
def test_values_outside_the_range_are_refused_with_the_bounds(key: str) -> None:
    low, high = config_checks.RANGES[key]
    outside = [
        bound
        for bound in (low and low / 2 if "float" in str(NUMERIC[key].type) else None,)
        if bound
    ]
    outside += [low - 1] + ([high + 1] if high is not None else [])
    for value in outside:
        message = failure(f"{key}={value}")
        assert f"{key} is " in message and str(low) in message


# Values that must fit together


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["training.updates_per_rollout=7", "training.epochs=1"], "training.updates_per_rollout=7"),
        (["training.updates_per_rollout=2", "training.epochs=4"], "training.epochs=4"),
        (["training.micro_batch_size=3"], "training.micro_batch_size=3"),
        (["policy.heads=3"], "policy.hidden_size=128"),
        (["policy.heads=4", "policy.key_value_heads=3"], "key_value_heads=3"),
        (
            ["rollout.max_total_tokens=48", "rollout.max_action_tokens=48"],
            "rollout.max_total_tokens=48",
        ),
        (
            ["loss.ratio=sequence", "loss.aggregate=token-mean"],
            "loss.aggregate=seq-mean-token-mean",
        ),
        (
            ["loss.llds_weight=0.2", "training.updates_per_rollout=1", "training.epochs=1"],
            "training.updates_per_rollout >= 2",
        ),
        (
            ["sampler.backend=vllm", "sampler.tensor_parallel=2"],
            "sampler.tensor_parallel=2",
        ),
        (
            ["sampler.backend=vllm", "rollout.temperature=2.5"],
            "rollout.temperature=2.5",
        ),
    ],
)
def test_values_that_do_not_fit_are_named(overrides: list[str], key: str) -> None:
    assert key in failure(*overrides)


def test_one_update_is_fine_without_the_penalty() -> None:
    overrides = ["training.updates_per_rollout=1", "training.epochs=1", "loss.llds_weight=0"]
    assert load_experiment("desk/grpo", overrides).training.updates_per_rollout == 1


def test_odd_head_size_is_refused() -> None:
    """30 / 2 = 15 numbers a head, which rotary positions cannot pair up."""
    assert failure("policy.hidden_size=30", "policy.heads=2", "policy.key_value_heads=1")


# No dead values


def _reads() -> set[tuple[str, str]]:
    """Every `owner.field` read outside the configuration itself, by the owner's last name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name.startswith("config"):
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


READS = _reads()


@pytest.mark.parametrize(
    ("section", "name"),
    [
        pytest.param(
            section,
            f.name,
            id=f"{section}.{f.name}",
        )
        for section, f in FIELDS
    ],
)
def test_every_value_is_read_somewhere(section: str, name: str) -> None:
    """As `….section.field`, or as `config.field` where a function is handed its section alone."""
    owners = {section, "config", "_config", "settings"}
    assert any((owner, name) in READS for owner in owners), (
        f"nothing reads {section}.{name}: use it or remove it"
    )
