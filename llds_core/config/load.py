"""One frozen `ExperimentConfig` owns every value a user can set.

A configuration is a profile (sizes: policy, world, hardware) with a method (objective) laid over it
and dotted overrides on top: `load_experiment("desk/llds-action", ["training.learning_rate=1e-4"])`.
Between them lie a variant, named behind the method (`paper-3b/grpo@official`), and a layout, which
says how the run is laid out on GPUs. A profile may build on a `base` and name its own layout.
Everything is validated once, at construction; an unknown key names its nearest valid neighbour.
Sizes are derived here and nowhere else: a *step* is one rollout and all of its updates, an *update*
is one optimizer step on one mini-batch.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from llds_core.config.checks import validate
from llds_core.config.sections import (
    DataConfig,
    DenseConfig,
    DiagnosticsConfig,
    EvaluationConfig,
    HardwareConfig,
    LossConfig,
    PolicyConfig,
    RetrievalConfig,
    RewardConfig,
    RolloutConfig,
    SamplerConfig,
    ServiceConfig,
    TrainingConfig,
    WarmstartConfig,
    WorldConfig,
)
from llds_core.errors import ConfigError, closest, did_you_mean

_PRESETS = files("llds_core") / "presets"
# Keys of a preset that are not sections of a configuration.
_ABOUT = ("description", "base", "layout", "methods", "profiles")


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment.

    Raises:
        ConfigError: for any value out of range or sizes that do not divide.
    """

    profile: str
    method: str
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    warmstart: WarmstartConfig = field(default_factory=WarmstartConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def name(self) -> str:
        """`<profile>/<method>`."""
        return f"{self.profile}/{self.method}"

    @property
    def warm_starts(self) -> bool:
        """Whether runs start from a policy that is first trained on scripted traces."""
        return not self.policy.path or self.training.warmstart

    @property
    def trajectories_per_rollout(self) -> int:
        """Trajectories sampled per step."""
        return self.rollout.prompts_per_rollout * self.rollout.group_size

    @property
    def world_size(self) -> int:
        """Processes of all nodes together."""
        return self.hardware.nodes * self.hardware.processes

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


def variants() -> list[str]:
    """Names of the variants, ways to run any method of the paper profiles."""
    return _preset_names("variants")


def layouts() -> list[str]:
    """Names of the layouts: GPUs, and what makes a run fit on them."""
    return _preset_names("layouts")


def load_experiment(
    name: str, overrides: Iterable[str] = (), layout: str | None = None
) -> ExperimentConfig:
    """Build the experiment `<profile>/<method>` or `<profile>/<method>@<variant>`.

    Args:
        name: of the experiment.
        overrides: dotted, such as `training.steps=4`.
        layout: one of `layouts()`; None takes the one the profile names, if any.

    Raises:
        ConfigError: for an unknown profile, method, variant, layout or key, a wrong type, or sizes
            that do not fit together.
    """
    profile, method, layers = _layers(name)
    layout = layout or _read_profile(profile).get("layout")
    if layout:
        layers.append(_read_layout(layout, profile))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f'override "{override}" has no "=": write it as section.key=value')
        if key.strip() in ("profile", "method"):
            raise ConfigError(
                f'override "{override}" changes what is run: name the experiment as profile/method'
            )
        layers.append(_nest(key.strip(), _parse_yaml(text, key)))
    return _combine(profile, method, layers)


def printed_experiment(name: str) -> ExperimentConfig:
    """Build the experiment `name` from its profile, method and variant alone: what a deviation
    deviates from.
    """
    return _combine(*_layers(name))


def _combine(profile: str, method: str, layers: Iterable[Mapping[str, Any]]) -> ExperimentConfig:
    values: dict[str, Any] = {"profile": profile, "method": method}
    for layer in layers:
        values = _merge(values, {key: layer[key] for key in layer if key not in _ABOUT})
    return ExperimentConfig.from_dict(values)


def _layers(name: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Profile, method as named, and what they set, lowest first."""
    profile, separator, method = name.partition("/")
    if not separator or not method:
        raise ConfigError(f'experiment "{name}" is not of the form profile/method: try "desk/grpo"')
    plain, marked, variant = method.partition("@")
    if profile not in profiles() or plain not in methods():
        raise _unknown_experiment(profile, plain)
    chosen = [_read_profile(profile), _read_preset("methods", plain)]
    layers = [*chosen, chosen[0].get("methods", {}).get(plain, {})]
    if marked:
        if variant not in variants():
            raise ConfigError(
                f'unknown variant "{variant}" in "{name}": {did_you_mean(variant, variants())}'
            )
        values = _read_preset("variants", variant)
        layers += [values, values.get("methods", {}).get(plain, {})]
    return profile, method, layers


def _read_profile(name: str) -> dict[str, Any]:
    values = _read_preset("profiles", name)
    base = values.get("base")
    return _merge(_read_profile(base), values) if base else values


def _read_layout(name: str, profile: str) -> dict[str, Any]:
    if name not in layouts():
        raise ConfigError(f'unknown layout "{name}": {did_you_mean(name, layouts())}')
    values = _read_preset("layouts", name)
    for pattern, special in values.get("profiles", {}).items():
        if fnmatchcase(profile, pattern):
            values = _merge(values, special)
    return values


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


@cache
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
