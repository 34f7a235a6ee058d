"""What a study consists of: arms, each a method with overrides and seeds.

A study lives in `presets/studies/<name>.yaml`. Its entries are ordered group by group as in the
file, and inside a group seed by seed, so that a study that is stopped early has covered every arm
of its finished groups.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from llds_core.config.load import ExperimentConfig, load_experiment
from llds_core.errors import ConfigError, closest, did_you_mean

_STUDIES = files("llds_core") / "presets" / "studies"


@dataclass(frozen=True)
class Arm:
    """One setting of a study.

    Attributes:
        name: unique in the study; names published runs.
        method: preset of the method.
        seeds: seeds to run.
        overrides: laid over the method, those of the study included.
        group: arms that are run, and drawn, together.
        note: what the arm is for.
        label: how figures and tables call it.
    """

    name: str
    method: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    group: str = "main"
    note: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Arms that vary one thing, in its order.

    Attributes:
        name: in tables and legends.
        title: in figures.
        arms: what a figure calls each arm; empty for the label of the arm.
        figures: where it is drawn: `weight`, `updates`, `map`, or a group whose arms it shows.
    """

    name: str
    title: str
    arms: Mapping[str, str]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One run of a study: an arm, a seed and the configuration they make."""

    arm: Arm
    seed: int
    config: ExperimentConfig


@dataclass(frozen=True)
class Study:
    """A named queue of arms on one profile."""

    name: str
    profile: str
    description: str
    arms: tuple[Arm, ...]
    series: tuple[Series, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """How figures and tables call each arm."""
        return {arm.name: arm.label or arm.name for arm in self.arms}

    def drawn(self, figure: str) -> tuple[Series, ...]:
        """Series of a figure."""
        return tuple(series for series in self.series if figure in series.figures)

    @property
    def only_on_map(self) -> set[str]:
        """Arms that are nothing but cells of the map: those of the map's own group."""
        return {arm.name for arm in self.arms if arm.group == "map"}

    def with_seeds(self, seeds: Sequence[int]) -> "Study":
        """The same arms on other seeds: an arm that has n takes the first n of `seeds`."""
        given = tuple(dict.fromkeys(seeds))
        arms = [dataclasses.replace(arm, seeds=given[: len(arm.seeds)]) for arm in self.arms]
        return dataclasses.replace(self, arms=tuple(arms))

    def chosen(self, names: Sequence[str] | None = None) -> list[Arm]:
        """Arms in the order of the file, restricted to `names` (arms or groups) where given.

        Raises:
            ConfigError: for an arm that is not in the study.
        """
        valid = [*dict.fromkeys(arm.group for arm in self.arms), *(arm.name for arm in self.arms)]
        for wanted in names or ():
            if wanted not in valid:
                raise ConfigError(
                    f'study {self.name} has no arm or group "{wanted}": {_hint(wanted, valid)}'
                )
        return [arm for arm in self.arms if not names or arm.name in names or arm.group in names]

    def entries(
        self, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> list[Entry]:
        """The runs in order, restricted to `arms` (names or groups) and `seeds` where given.

        Raises:
            ConfigError: for an arm that is not in the study, or nothing to run.
        """
        chosen = self.chosen(arms)
        queue = []
        for group in dict.fromkeys(arm.group for arm in self.arms):
            pairs = [(seed, arm) for arm in chosen if arm.group == group for seed in arm.seeds]
            pairs.sort(key=lambda pair: pair[0])  # stable: inside a seed, the order of the file
            for seed, arm in pairs:
                if seeds is None or seed in seeds:
                    config = load_experiment(f"{self.profile}/{arm.method}", arm.overrides)
                    queue.append(Entry(arm, seed, config))
        if not queue:
            raise ConfigError(f"study {self.name} has no such arms and seeds: name others")
        return queue


def studies() -> list[str]:
    """Names of the studies that ship with the package."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in _STUDIES.iterdir()
        if path.name.endswith(".yaml")
    )


def load_study(name: str) -> Study:
    """Read a study by name, or from a YAML file.

    Raises:
        ConfigError: for an unknown study, or a file that is none: what is wrong and where.
    """
    if name in studies():
        text = (_STUDIES / f"{name}.yaml").read_text("utf-8")
    elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        raise ConfigError(f'unknown study "{name}": {did_you_mean(name, studies())}')
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"study {name} is not valid YAML ({' '.join(str(error).split())[:120]}): correct it"
        ) from error
    return _parse(name, values)


def _parse(name: str, values: Any) -> Study:
    keys = {"description", "profile", "overrides", "arms", "series"}
    values = _mapping(values, f"study {name}", keys)
    shared = _strings(values.get("overrides", []), f"study {name}: overrides")
    arms = values.get("arms")
    if not isinstance(arms, list) or not arms:
        raise ConfigError(f"study {name} has no arms: list them under arms")
    fields = {field.name for field in dataclasses.fields(Arm)}
    parsed: dict[str, Arm] = {}
    for index, entry in enumerate(arms, 1):
        where = f"study {name}, arm {index}"
        entry = _mapping(entry, where, fields)
        for key in ("name", "method", "seeds"):
            if key not in entry:
                raise ConfigError(f"{where} has no {key}: add it")
        seeds = entry["seeds"]
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
            raise ConfigError(f"{where}: seeds is {seeds!r}: give a list of numbers")
        own = _strings(entry.get("overrides", []), f"{where}: overrides")
        arm = Arm(
            name=str(entry["name"]),
            method=str(entry["method"]),
            seeds=tuple(seeds),
            overrides=_merge_overrides(shared, own),
            group=str(entry.get("group", "main")),
            note=str(entry.get("note", "")),
            label=str(entry.get("label", "")),
        )
        if arm.name in parsed:
            raise ConfigError(f'{where}: the name "{arm.name}" is taken: choose another')
        parsed[arm.name] = arm
        load_experiment(f"{values.get('profile')}/{arm.method}", arm.overrides)
    return Study(
        Path(name).stem,
        values["profile"],
        str(values.get("description", "")),
        (*parsed.values(),),
        tuple(_series(name, entry, parsed) for entry in values.get("series", ())),
    )


def _series(study: str, entry: Any, arms: Iterable[str]) -> Series:
    where = f"study {study}: a series"
    fields = [field.name for field in dataclasses.fields(Series)]
    entry = _mapping(entry, where, fields)
    if set(entry) != set(fields):
        raise ConfigError(f"{where} has keys {', '.join(entry)}: give {', '.join(fields)}")
    labels = entry["arms"]
    labels = labels if isinstance(labels, dict) else dict.fromkeys(labels, "")
    for arm in labels:
        if arm not in arms:
            raise ConfigError(f'{where} has an unknown arm "{arm}": {_hint(arm, [*arms])}')
    return Series(str(entry["name"]), str(entry["title"]), labels, tuple(entry["figures"]))


def _hint(wanted: str, names: Sequence[str]) -> str:
    near = closest(wanted, names)
    return f'did you mean "{near}"?' if near else "--status lists them"


def _merge_overrides(shared: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Overrides of a study and of an arm; the arm's win."""
    merged = {override.partition("=")[0].strip(): override for override in (*shared, *own)}
    return tuple(merged.values())


def _mapping(value: Any, where: str, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}, not a mapping: write key: value lines")
    for key in value:
        if key not in keys:
            raise ConfigError(f'{where} has an unknown key "{key}": {did_you_mean(key, keys)}')
    return value


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where} is {value!r}: give a list of section.key=value")
    return value
