"""Experiments from presets and overrides.

A configuration is a profile (sizes: policy, world, hardware) with a method (objective) laid over it
and dotted overrides on top: `load_experiment("desk/llds-action", ["training.learning_rate=1e-4"])`.
Methods that do not contradict each other combine: `gspo+llds-action`.
Between them lie a variant, named behind the method (`paper-3b/grpo@official`), and a layout, which
says how the run is laid out on GPUs, or what makes it fit without one. A profile may build on a
`base` and name its own layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from llds_core.config.given import parse_yaml
from llds_core.config.schema import ExperimentConfig
from llds_core.errors import ConfigError, did_you_mean

PRESETS = Path(__file__).parents[1] / "presets"
# Keys of a preset that are not sections of a configuration.
_ABOUT = ("description", "differences", "base", "layout", "methods", "only", "profiles", "variants")
# Of Linux on processors that multiply matrices in bfloat16: Intel's, AMD's and ARM's names.
_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind, which is a folder."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.yaml"))


# Names of what ships with the package.
profiles = partial(preset_names, "profiles")
methods = partial(preset_names, "methods")
variants = partial(preset_names, "variants")  # ways to run any method of the paper profiles
layouts = partial(preset_names, "layouts")  # GPUs or none, and what makes a run fit there


def layouts_for(profile: str) -> list[str]:
    """Names of the layouts that are for a profile: some are `only` for a few."""
    only = {name: _read_preset("layouts", name).get("only", [profile]) for name in layouts()}
    return [name for name in only if profile in only[name]]


def override_key(override: str) -> str:
    """The dotted key that an override sets."""
    return override.partition("=")[0].strip()


def laid_over(lower: Iterable[str], upper: Iterable[str]) -> list[str]:
    """Overrides of a layout or a study, without keys that `upper` sets, and then `upper`."""
    upper = [*upper]
    own = {*map(override_key, upper)}
    return [*(each for each in lower if override_key(each) not in own), *upper]


def load_experiment(
    name: str, overrides: Iterable[str] = (), layout: str | None = None
) -> ExperimentConfig:
    """Build the experiment `name`, `<profile>/<method>` or `<profile>/<method>@<variant>`.

    `layout` is one of `layouts()`, or empty for none: then, without overrides, it is the experiment
    as printed, from which others deviate. None takes the one the profile names, if any. A
    `ConfigError` names what is unknown, given twice, of a wrong type, or does not fit together.
    """
    profile, method, layers = _layers(name)
    if layout is None:
        layout = _read_profile(profile).get("layout")
    if layout:
        layers.append(_read_layout(layout, profile))
    given: dict[str, str] = {}
    for override in overrides:
        key, text = override_key(override), override.partition("=")[2]
        if "=" not in override:
            raise ConfigError(f'override "{override}" has no "=": write it as section.key=value')
        if key in ("profile", "method"):
            raise ConfigError(
                f'override "{override}" changes what is run: name the experiment as profile/method'
            )
        if key in given:
            raise ConfigError(f"{key} is given twice ({given[key]}, {override}): leave one out")
        given[key] = override
        # Text is taken to the letter; where it may be missing, an empty one says so, and "null".
        missing = ("", "null", "~") if _text_keys().get(key) else ()
        literal = key in _text_keys() and text.strip() not in missing
        layers.append(_nest(key, text if literal else parse_yaml(text, key)))
    values: dict[str, Any] = {"profile": profile, "method": method}
    for layer in layers:
        values = _merge(values, {key: layer[key] for key in layer if key not in _ABOUT})
    training = values.get("training")
    if isinstance(training, Mapping) and training.get("dtype") == "auto":
        dtype = "bfloat16" if computes_in_bfloat16() else "float32"
        values = _merge(values, {"training": {"dtype": dtype}})
    return ExperimentConfig(**values)


def official_differences(name: str) -> list[str]:
    """What an experiment `@official` still does otherwise than the code it is named after."""
    layers = _layers(name)[2] if "@" in name else []
    return [each for layer in layers for each in layer.get("differences", ())]


@cache
def computes_in_bfloat16() -> bool:
    """Whether this processor has units for bfloat16; where nobody says so, it has none."""
    try:
        text = _CPUINFO.read_text("utf-8")
    except OSError:
        return False
    return not _BFLOAT16_UNITS.isdisjoint(text.split())


def _layers(name: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Profile, method as named, and what they set, lowest first."""
    profile, separator, method = name.partition("/")
    if not separator or not method:
        raise ConfigError(f'experiment "{name}" is not of the form profile/method: try "desk/grpo"')
    plain, marked, variant = method.partition("@")
    parts = plain.split("+")
    named = [("profile", profile, profiles()), *(("method", part, methods()) for part in parts)]
    named += [("variant", variant, variants())] if marked else []
    for kind, value, valid in named:
        if value not in valid:
            raise ConfigError(f'unknown {kind} "{value}" in "{name}": {did_you_mean(value, valid)}')
    base = _read_profile(profile)
    chosen = [_read_preset("methods", part) for part in parts]
    special = [base.get("methods", {}).get(part, {}) for part in parts]
    both = list(map(_merge, chosen, special))
    _check_agreement(parts, both)
    layers = [base, *both]
    if marked:
        values = _read_preset("variants", variant)
        # A method with official code of its own brings what that ran.
        if len(chosen) == 1 and variant in chosen[0].get("variants", {}):
            layers.append(chosen[0]["variants"][variant])
        elif strange := [part for part in parts if part not in values["only"]]:
            raise ConfigError(
                f'"{name}": the code behind @{variant} has no {strange[0]}: leave @{variant} out, '
                f"or name one of {', '.join(values['only'])}"
            )
        else:
            layers += [values, *(values.get("methods", {}).get(part, {}) for part in parts)]
    return profile, method, layers


def _check_agreement(parts: Sequence[str], layers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse methods that set a key to different values."""
    seen: dict[str, tuple[str, Any]] = {}
    for part, layer in zip(parts, layers, strict=True):
        for section in layer.keys() - set(_ABOUT):
            for key, value in layer[section].items():
                first, before = seen.setdefault(f"{section}.{key}", (part, value))
                if before != value:
                    raise ConfigError(
                        f"{first} sets {section}.{key}={before} and {part} sets it to {value}: "
                        "leave one of them out"
                    )


def _read_profile(name: str) -> dict[str, Any]:
    values = _read_preset("profiles", name)
    base = values.get("base")
    return _merge(_read_profile(base), values) if base else values


def _read_layout(name: str, profile: str) -> dict[str, Any]:
    if name not in (valid := layouts_for(profile)):
        raise ConfigError(f'profile {profile} has no layout "{name}": {did_you_mean(name, valid)}')
    values = _read_preset("layouts", name)
    for pattern, special in values.get("profiles", {}).items():
        if fnmatchcase(profile, pattern):
            values = _merge(values, special)
    return values


@cache
def _read_preset(kind: str, name: str) -> dict[str, Any]:
    values = parse_yaml((PRESETS / kind / f"{name}.yaml").read_bytes(), name)
    return dict(values)


@cache
def _text_keys() -> dict[str, bool]:
    """Dotted keys whose values are text, and whether they may be null."""
    found = {}
    for section, cls in get_type_hints(ExperimentConfig).items():
        for key, kind in get_type_hints(cls).items() if is_dataclass(cls) else ():
            if str in (kind, *get_args(kind)):
                found[f"{section}.{key}"] = kind is not str
    return found


def _nest(key: str, value: Any) -> dict[str, Any]:
    head, separator, rest = key.partition(".")
    return {head: _nest(rest, value) if separator else value}


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
