"""The published runs of the study by arm, their tables, and numbers as prose has them."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from llds_core.reporting.run_view import Measured, Measureds
from llds_core.reporting.store import read_published
from llds_core.study.published import published_mechanism

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published/desk"
STEPS = 30  # of GRPO, 32 updates each
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def run_alone(threads: int, seed: int) -> pd.DataFrame:
    """Metrics by step of a run that was made to be timed."""
    path = PUBLISHED / "alone" / f"grpo-threads-{threads}-seed{seed}.csv.gz"
    return pd.read_csv(path, index_col="step")


class Study:
    """Published runs by arm and seed, and the tables made of them."""

    def __init__(self) -> None:
        self.arms: dict[str, dict[int, Measured]] = {}
        for run in read_published("desk", ROOT / "results/published"):
            self.arms.setdefault(run.arm, {})[run.seed] = Measured(run, run.window)
        self.claims = pd.read_csv(PUBLISHED / "claims.csv")
        self.phases = pd.read_csv(PUBLISHED / "phases.csv").set_index(["method", "seed"])
        self.runs = pd.read_csv(PUBLISHED / "runs.csv")
        self.mechanism = published_mechanism(ROOT / "results/published", "desk")

    def bounds(self, start: str) -> list[float]:
        """Effect of a claim and its interval."""
        [row] = self.claims[self.claims["claim"].str.startswith(start)].itertuples()
        return [row.effect, row.low, row.high]

    def claim(self, start: str) -> str:
        """`effect [low, high]` of a claim."""
        return interval(*self.bounds(start))

    def effect(self, start: str) -> float:
        """Effect of a claim."""
        return self.bounds(start)[0]

    def collapsed(self, arm: str) -> str:
        """`k of n`."""
        runs = self.arms[arm].values()
        return f"{sum(run.collapse is not None for run in runs)} of {len(runs)}"

    def last(self, arm: str, step: int = STEPS, seeds: Iterable[int] = ()) -> list[float]:
        """Windowed reward of each seed at a step, or at its end."""
        runs: Measureds = self.arms[arm]
        return [runs[seed].tail("reward", step) for seed in (seeds or sorted(runs))]

    def mean(self, column: str, arm: str) -> float:
        """Mean of a column of `runs.csv` over the seeds of an arm."""
        return float(self.runs.loc[self.runs["method"] == arm, column].mean())


def number(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """As printed: with the typographic minus, and no negative zero."""
    text = f"{value:{'+' if plus else ''}.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def interval(estimate: float, low: float, high: float) -> str:
    """`estimate [low, high]`."""
    return f"{number(estimate)} [{number(low)}, {number(high)}]"


def span(values: Iterable[float], digits: int = 2, to: str = "–") -> str:
    """Smallest and largest value."""
    found = sorted(values)
    return to.join(dict.fromkeys(number(value, digits) for value in (found[0], found[-1])))
