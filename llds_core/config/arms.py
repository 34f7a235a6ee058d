"""What a study consists of: arms, each a method with overrides and seeds.

A study lives in `presets/studies/<name>.yaml`. Its entries are ordered group by group as in the
file, and inside a group seed by seed, so that a study that is stopped early has covered every arm
of its finished groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from llds_core.config.checked import checked
from llds_core.config.given import Name, Seed, parse_yaml
from llds_core.config.load import PRESETS, laid_over, load_experiment, preset_names
from llds_core.config.schema import ExperimentConfig
from llds_core.errors import ConfigError, did_you_mean

MAIN_ARMS = ("grpo", "llds-action")  # the two that the story compares


@checked
class Arm:
    """One setting of a study."""

    name: Name
    """Unique in the study; names published runs."""
    method: str
    """Preset of the method."""
    seeds: Annotated[tuple[Seed, ...], AfterValidator(lambda seeds: tuple(dict.fromkeys(seeds)))]
    overrides: tuple[str, ...] = ()
    """Laid over the method, those of the study included."""
    group: str = "main"
    """Arms that are run, and drawn, together."""
    note: str = ""
    """What the arm is for."""
    label: str = ""
    """Name in figures and tables."""


@checked
class Series:
    """Arms that vary one thing, in its order."""

    name: str
    """In tables and legends."""
    title: str
    """In figures."""
    arms: Annotated[
        dict[str, str],
        BeforeValidator(lambda arms: dict.fromkeys(arms, "") if isinstance(arms, list) else arms),
    ]
    """What a figure calls each arm; empty for the label of the arm."""
    figures: tuple[str, ...]
    """Where it is drawn: `weight`, `updates`, `rates`, `map`, or a group whose arms it shows."""


@dataclass(frozen=True)
class Entry:
    """One run of a study: an arm, a seed and the configuration they make."""

    arm: Arm
    seed: int
    config: ExperimentConfig


@checked
class Study:
    """A named queue of arms on one profile."""

    name: Name
    profile: Name
    description: str = ""
    arms: tuple[Arm, ...] = ()
    overrides: tuple[str, ...] = ()
    """Of every arm, which has them among its own."""
    series: tuple[Series, ...] = ()

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("it has no arms: list them under arms")
        names = [arm.name for arm in self.arms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'the arm "{twice[0]}" is there twice: choose another name')
        for series in self.series:
            for arm in series.arms:
                if arm not in names:
                    hint = did_you_mean(arm, names)
                    raise ValueError(f'series "{series.name}" has an unknown arm "{arm}": {hint}')

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
        arms = [replace(arm, seeds=given[: len(arm.seeds)]) for arm in self.arms]
        return replace(self, arms=tuple(arms))

    def chosen(self, names: Sequence[str] | None = None) -> list[Arm]:
        """Arms in the order of the file, restricted to `names` (arms or groups) where given."""
        valid = [*(arm.group for arm in self.arms), *(arm.name for arm in self.arms)]
        for wanted in names or ():
            if wanted not in valid:
                hint = did_you_mean(wanted, {*valid})
                raise ConfigError(f'study {self.name} has no arm or group "{wanted}": {hint}')
        return [arm for arm in self.arms if not names or arm.name in names or arm.group in names]

    def entries(
        self, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> list[Entry]:
        """The runs in order, restricted to `arms` (names or groups) and `seeds` where given."""
        groups = list(dict.fromkeys(arm.group for arm in self.arms))
        queue = [
            Entry(arm, seed, config)
            for arm in self.chosen(arms)
            for config in [load_experiment(f"{self.profile}/{arm.method}", arm.overrides)]
            for seed in arm.seeds
            if seeds is None or seed in seeds
        ]
        if not queue:
            raise ConfigError(f"study {self.name} has no such arms and seeds: name others")
        # Stable: inside a seed, the order of the file.
        return sorted(queue, key=lambda entry: (groups.index(entry.arm.group), entry.seed))


studies = partial(preset_names, "studies")  # names of those that ship with the package


def load_study(name: str) -> Study:
    """Read a study by name, or from a YAML file; a `ConfigError` says what is wrong and where."""
    file = PRESETS / "studies" / f"{name}.yaml" if name in studies() else Path(name)
    if file.suffix not in (".yaml", ".yml") or not file.is_file():
        raise ConfigError(f'unknown study "{name}": {did_you_mean(name, studies())}')
    values = parse_yaml(file.read_bytes(), f"study {name}")
    if not isinstance(values, dict):
        raise ConfigError(f"study {name} is {values!r}, not a mapping: write key: value lines")
    try:
        study = Study(**{"name": file.stem} | {str(key): values[key] for key in values})
        # Of two values of a key the arm's own counts.
        arms = [
            replace(arm, overrides=tuple(laid_over(study.overrides, arm.overrides)))
            for arm in study.arms
        ]
        study = replace(study, arms=tuple(arms))
        study.entries()  # an experiment that cannot be is refused before any is run
    except ConfigError as error:
        raise ConfigError(f"study {name}: {error}") from None
    return study
