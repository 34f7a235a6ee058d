"""One frozen `ExperimentConfig` owns every value a user can set.

A configuration is a profile (sizes: policy, world, hardware) with a method (objective) laid over it
and dotted
overrides on top: `load_experiment("desk/llds-action", ["training.learning_rate=1e-4"])`. Everything
    is validated
once, at construction; an unknown key names its nearest valid neighbour. Sizes are derived here and
nowhere else: a *step* is one rollout and all of its updates, an *update* is one optimizer step on
one mini-batch.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import yaml

from llds_core.config_checks import validate
from llds_core.errors import ConfigError, closest, did_you_mean

_PRESETS = files("llds_core") / "presets"


@dataclass(frozen=True)
class WorldConfig:
    """The world of facts: passages and questions."""

    name: Literal["atlas"] = "atlas"
    seed: int = 0
    cities: int | None = 1200
    """Number of most populous cities; null takes all of them."""
    countries: Literal["all", "cities"] = "all"
    """Every country, or those of the chosen cities only."""
    dev_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass(frozen=True)
class RetrievalConfig:
    """The search engine behind `<search>`."""

    backend: Literal["bm25"] = "bm25"
    top_k: int = 3
    title_weight: int = 2
    failure_rate: float = 0.0
    """Share of training searches that return unrelated passages, in [0, 1]."""


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network: a Qwen2 architecture made here, or `path` to load one."""

    path: str | None = None
    """Checkpoint folder or hub id; null builds the architecture below and warm-starts it."""
    vocab_size: int = 3000
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    initializer_range: float = 0.02
    """Standard deviation of the initial weights; small models train faster from larger ones."""


@dataclass(frozen=True)
class WarmstartConfig:
    """Supervised training on scripted search traces that turns a random policy into one that can
    search.
    """

    seed: int = 0
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    observation_weight: float = 0.2
    """Loss weight of retrieved tokens relative to policy tokens, in [0, 1]."""
    early_answer_rate: float = 0.35
    """Share of two-hop traces that stop after one search and guess."""
    wrong_answer_rate: float = 0.17
    """Share of the other traces that end in a wrong answer of the right kind."""
    failure_rate: float = 0.2
    """Share of scripted searches that return unrelated passages."""
    retry_rate: float = 0.5
    """Share of failed scripted searches that are repeated; after the others the trace guesses."""
    save_every: int = 200
    threads: int = 2


@dataclass(frozen=True)
class RolloutConfig:
    """The Search-R1 rollout: batch, turns, lengths and sampling."""

    prompts_per_rollout: int = 16
    group_size: int = 8
    max_searches: int = 3
    max_action_tokens: int = 48
    max_observation_tokens: int = 160
    max_total_tokens: int = 640
    """Prompt and response together."""
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: Literal["short", "search-r1"] = "short"


@dataclass(frozen=True)
class RewardConfig:
    """The outcome reward."""

    kind: Literal["em", "f1", "format"] = "em"
    structure: float = 0.2
    """Format reward only: credit for a valid sequence of blocks."""
    final: float = 0.1
    """Format reward only: credit for an answer in an invalid sequence."""
    retrieval: float = 0.0
    """Format reward only: credit when a gold answer was retrieved."""


@dataclass(frozen=True)
class LossConfig:
    """The objective: clipped surrogate, KL, entropy bonus and the LLDS penalty."""

    advantage_std: Literal["group", "batch", "none"] = "group"
    aggregate: Literal["token-mean", "token-mean-micro", "seq-mean-token-mean", "constant"] = (
        "token-mean"
    )
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.001
    entropy_weight: float = 0.0
    llds_weight: float = 0.0
    gate: Literal["action", "response", "token"] = "action"
    normalizer: Literal["preserved", "all"] = "preserved"
    preserve: Literal["nonnegative", "positive"] = "nonnegative"
    gate_threshold: float = 0.0
    answer_weight: float = 1.0
    answer_ramp: Literal["none", "paper", "code"] = "none"
    """LLDS-MA: how the answer weight follows the mean number of searches."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, checkpoints and limits."""

    steps: int = 24
    """Rollouts, each followed by `updates_per_rollout` optimizer steps."""
    updates_per_rollout: int = 32
    epochs: int = 4
    """Passes over each rollout; the updates are divided evenly among them."""
    micro_batch_size: int = 16
    learning_rate: float = 2e-4
    warmup_steps: int = 1
    """Linear warm-up in steps (rollouts), then constant."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_every: int = 4
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept beside the best one."""
    max_nonfinite_updates: int = 5
    """Non-finite updates in a row after which the run stops as failed."""
    trajectories_per_step: int = 4
    """Full trajectories stored per step."""
    threads: int = 1
    """CPU threads of torch. They change floating-point bits, so they belong to the run."""
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation."""

    questions: int | None = 200
    """Questions per split, spread evenly over the kinds; null takes all."""
    batch_size: int = 100
    samples: int = 1
    """Sampled trajectories per question beside the greedy one; 0 for greedy only."""


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment.

    Raises:
        ConfigError: for any value out of range or sizes that do not divide.
    """

    profile: str
    method: str
    world: WorldConfig = field(default_factory=WorldConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    warmstart: WarmstartConfig = field(default_factory=WarmstartConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def name(self) -> str:
        """`<profile>/<method>`."""
        return f"{self.profile}/{self.method}"

    @property
    def trajectories_per_rollout(self) -> int:
        """Trajectories sampled per step."""
        return self.rollout.prompts_per_rollout * self.rollout.group_size

    @property
    def mini_batch_size(self) -> int:
        """Trajectories per optimizer step."""
        return (
            self.trajectories_per_rollout
            * self.training.epochs
            // self.training.updates_per_rollout
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """Build from a nested mapping; unknown keys and wrong types raise `ConfigError`."""
        return _build(cls, values, "")

    def to_yaml(self) -> str:
        """YAML text, the inverse of `from_yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "ExperimentConfig":
        """Parse YAML text written by `to_yaml`."""
        return cls.from_dict(_parse_yaml(text, "experiment"))

    def hash(self, *sections: str) -> str:
        """Twelve hex digits that change when any value changes, or any value of `sections` when
        given.
        """
        values = self.to_dict()
        chosen = {key: values[key] for key in sections} if sections else values
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    return _preset_names("profiles")


def methods() -> list[str]:
    """Names of the methods that ship with the package."""
    return _preset_names("methods")


def load_experiment(name: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Build the experiment `<profile>/<method>` with dotted overrides such as `training.steps=4`.

    Raises:
        ConfigError: for an unknown profile, method or key, a wrong type, or sizes that do not fit
            together.
    """
    profile, separator, method = name.partition("/")
    if not separator or not method:
        raise ConfigError(f'experiment "{name}" is not of the form profile/method: try "desk/grpo"')
    if profile not in profiles() or method not in methods():
        raise _unknown_experiment(profile, method)
    profile_values = _read_preset("profiles", profile)
    per_method = profile_values.pop("methods", {})
    values: dict[str, Any] = {"profile": profile, "method": method}
    for layer in (profile_values, _read_preset("methods", method), per_method.get(method, {})):
        values = _merge(
            values, {key: value for key, value in layer.items() if key != "description"}
        )
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f'override "{override}" has no "=": write it as section.key=value')
        if key.strip() in ("profile", "method"):
            raise ConfigError(
                f'override "{override}" changes what is run: name the experiment as profile/method'
            )
        values = _merge(values, _nest(key.strip(), _parse_yaml(text, key)))
    return ExperimentConfig.from_dict(values)


def _unknown_experiment(profile: str, method: str) -> ConfigError:
    known = {"profile": (profile, profiles()), "method": (method, methods())}
    kind = "profile" if profile not in profiles() else "method"
    value, valid = known[kind]
    near = [closest(name, names) for name, names in known.values()]
    hint = f'did you mean "{near[0]}/{near[1]}"? ' if all(near) else ""
    return ConfigError(
        f'unknown {kind} "{value}" in "{profile}/{method}": {hint}valid: {", ".join(valid)}'
    )


def _preset_names(kind: str) -> list[str]:
    return sorted(
        path.name.removesuffix(".yaml")
        for path in (_PRESETS / kind).iterdir()
        if path.name.endswith(".yaml")
    )


def _read_preset(kind: str, name: str) -> dict[str, Any]:
    return _parse_yaml((_PRESETS / kind / f"{name}.yaml").read_text("utf-8"), name)


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{what} is not valid YAML ({' '.join(str(error).split())[:120]}): check the value"
        ) from error


def _nest(key: str, value: Any) -> dict[str, Any]:
    head, separator, rest = key.partition(".")
    return {head: _nest(rest, value) if separator else value}


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f'"{path}" is {values!r}, not a section: set one of its keys, e.g. '
            f"{path}.{_first_key(cls)}=…"
        )
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        prefix = f"{path}." if path else ""
        nearest = did_you_mean(str(unknown[0]), hints, prefix=prefix)
        raise ConfigError(f'unknown key "{prefix}{unknown[0]}": {nearest}')
    missing = [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in values]
    if missing:
        raise ConfigError(f'"{missing[0]}" is missing: name the profile and the method')
    return cls(
        **{
            key: _convert(hints[key], value, f"{path}.{key}".lstrip("."))
            for key, value in values.items()
        }
    )


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _first_key(cls: type) -> str:
    return dataclasses.fields(cls)[0].name


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        if value not in options:
            raise ConfigError(f"{path} is {value!r}: {did_you_mean(str(value), options)}")
        return value
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as text; a number is what the user meant.
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            f"{path} is {value!r}, a {type(value).__name__}: it takes a value of type "
            f"{hint.__name__}"
        )
    return value
