"""The prose of the README's status section says what the published runs say."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from llds_core.reporting.claim_evidence import Measured, Measureds
from llds_core.reporting.stats import mcnemar
from llds_core.reporting.store import read_published

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published/desk"
STEPS = 30  # of GRPO, 32 updates each
NUMBERS = ("no", "one", "two", "three", "four", "five")


GRPO_RISES = "GRPO's reward rises"
LAST = "LLDS's last reward is above that of GRPO with"
SEVENTH, KL = f"{LAST} a seventh", f"{LAST} a KL weight of 0.1"
DRIVER, PARTIAL = "A higher driver score", "Among correct responses as likely"


class Study:
    """Published runs by arm and seed, and the tables made of them."""

    def __init__(self) -> None:
        self.arms: dict[str, dict[int, Measured]] = {}
        for run in read_published("desk", ROOT / "results/published"):
            self.arms.setdefault(run.arm, {})[run.seed] = Measured(run, run.window)
        self.claims = pd.read_csv(PUBLISHED / "claims.csv")
        self.phases = pd.read_csv(PUBLISHED / "phases.csv").set_index(["method", "seed"])
        self.runs = pd.read_csv(PUBLISHED / "runs.csv")

    def claim(self, start: str, digits: int = 2) -> str:
        """`effect [low, high]` of a claim."""
        [row] = self.claims[self.claims["claim"].str.startswith(start)].itertuples()
        low, high = (number(bound, digits) for bound in (row.low, row.high))
        return f"{number(row.effect, digits)} [{low}, {high}]"

    def effect(self, start: str) -> float:
        """Effect of a claim."""
        [row] = self.claims[self.claims["claim"].str.startswith(start)].itertuples()
        return float(row.effect)

    def collapsed(self, arm: str) -> str:
        """`k of n`."""
        runs = self.arms[arm].values()
        return f"{sum(run.collapse is not None for run in runs)} of {len(runs)}"

    def last(self, arm: str, step: int = STEPS, seeds: Iterable[int] = ()) -> list[float]:
        """Windowed reward of each seed at a step, or at its end."""
        runs: Measureds = self.arms[arm]
        return [runs[seed].tail("reward", step) for seed in (seeds or sorted(runs))]

    def mean(self, table: str, column: str, arm: str) -> float:
        """Mean of a column over the seeds of an arm."""
        rows: pd.DataFrame = getattr(self, table)
        return float(rows.loc[rows["method"] == arm, column].mean())


def number(value: float, digits: int = 2) -> str:
    """As printed: with the typographic minus, and no negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def span(values: Iterable[float], digits: int = 2, to: str = "–") -> str:
    """Smallest and largest value."""
    found = sorted(values)
    return to.join(dict.fromkeys(number(value, digits) for value in (found[0], found[-1])))


def growth(study: Study, *arms: str, digits: int = 0) -> str:
    """Span of the highest entropy over the first."""
    return span(
        (run.entropy_growth() for arm in arms for run in study.arms[arm].values()), digits, " to "
    )


def both(values: Iterable[float], digits: int = 2) -> str:
    """`a and b`, in the order of seeds."""
    return " and ".join(number(value, digits) for value in values)


def fallen(study: Study, arm: str) -> str:
    """Span of the lowest reward after the best, over it."""
    return span(run.lowest_after_best() for run in study.arms[arm].values())


def grpo_updates(study: Study) -> list[int]:
    """Updates made before the rollout at which a run of GRPO has collapsed."""
    return [32 * run.collapse for run in study.arms["grpo"].values() if run.collapse is not None]


def p_of_collapses(study: Study) -> float:
    outcomes = [
        {seed: run.collapse is not None for seed, run in study.arms[arm].items()}
        for arm in ("grpo", "llds-action")
    ]
    return mcnemar(*outcomes)


def below_start(study: Study) -> int:
    runs = study.arms["llds-action"].values()
    return sum(run.tail("reward", run.length) < run.rows["reward"].iloc[0] for run in runs)


def by_epochs(study: Study) -> str:
    arms = {8: "grpo-epochs-1", 16: "grpo-epochs-2", 32: "grpo"}
    return ", ".join(f"{study.collapsed(arm)} at {updates}" for updates, arm in arms.items())


def leads(study: Study, column: str, collapsed: bool) -> str:
    rows = study.phases.loc["grpo"]
    chosen = rows[rows["collapse"].notna() == collapsed].sort_index()[column]
    first, *rest = [number(value, 0) for value in chosen]
    return f"{', '.join([first, *rest[:-1]])} and {rest[-1]}"


def final(study: Study, arm: str) -> str:
    return number(study.mean("runs", "final_reward", arm))


def best(study: Study, arm: str) -> str:
    return number(study.mean("runs", "best_reward", arm))


PHRASES: Mapping[str, Callable[[Study], str]] = {
    "rise": lambda s: (
        f"start policy's {number(s.mean('runs', 'start_reward', 'grpo'))} the reward rises by "
        f"{s.claim(GRPO_RISES)}"
    ),
    "fall": lambda s: (
        f"falls in all five seeds to {fallen(s, 'grpo')} of its best while entropy grows "
        f"{growth(s, 'grpo')} times; by the rule {s.collapsed('grpo')} collapse"
    ),
    "llds": lambda s: (
        f"rewards fall to {fallen(s, 'llds-action')} of their best, in {NUMBERS[below_start(s)]} "
        f"of five seeds below the start policy's"
    ),
    "test": lambda s: f"(p = {number(p_of_collapses(s))}, McNemar)",
    "long": lambda s: (
        f"ends at {final(s, 'llds-action-long')}, below the "
        f"{number(s.mean('runs', 'start_reward', 'llds-action-long'))} of its start policy "
        f"(held-out {number(s.mean('runs', 'heldout_em', 'llds-action-long'))} → "
        f"{number(s.mean('runs', 'last_heldout_em', 'llds-action-long'))})"
    ),
    "updates": lambda s: f"collapses after {span(grpo_updates(s), 0, ' to ')} updates",
    "epochs": lambda s: f"collapsed: {by_epochs(s)}",
    "long epochs": lambda s: (
        f"{s.collapsed('grpo-long-epochs-1')} collapse, last reward "
        f"{span(s.last('grpo-long-epochs-1', 120))}"
    ),
    "as many": lambda s: (
        "LLDS after as many updates on the same seeds "
        f"{span(s.last('llds-action', STEPS, s.arms['grpo-long-epochs-1']))}"
    ),
    "noisy": lambda s: f"end at {both(s.last('grpo-one-epoch-32'))}",
    "no negative": lambda s: (
        f"{s.collapsed('grpo-no-negative')} collapse, last reward "
        f"{span(s.last('grpo-no-negative'))}, LLDS on these seeds "
        f"{span(s.last('llds-action', STEPS, s.arms['grpo-no-negative']))}"
    ),
    "gates": lambda s: f"{s.claim('Action gate, then response gate, then token gate on')} exact",
    "weight 1": lambda s: f"at 1 entropy still grows {growth(s, 'llds-weight-1')} times",
    "weight 3": lambda s: f"at 3 {growth(s, 'llds-weight-3', digits=1)} times",
    "seventh": lambda s: f"difference {s.claim(SEVENTH)}",
    "kl": lambda s: f"difference {s.claim(KL)}",
    "kl entropy": lambda s: f"{growth(s, 'grpo-kl-0.1', digits=1)} times",
    "half": lambda s: f"{growth(s, 'grpo-lr-half')} times with half the learning rate",
    "kl 0.01": lambda s: f"{growth(s, 'grpo-kl-0.01')} times with KL 0.01",
    "leads": lambda s: f"leaves its maximum {leads(s, 'likelihood_lead', True)} steps before",
    "halves": lambda s: f"leads by {leads(s, 'halfway_lead', True)}",
    "driver": lambda s: (
        f"(rank correlation {number(s.effect(DRIVER))}; {number(s.effect(PARTIAL))}"
    ),
}


@pytest.fixture(scope="module")
def study() -> Study:
    return Study()


@pytest.fixture(scope="module")
def status() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    start, end = text.index("## Status"), text.index("<!-- results: desk/runs -->")
    return " ".join(text[start:end].split())


@pytest.mark.parametrize("name", PHRASES)
def test_the_status_says_what_the_runs_say(name: str, study: Study, status: str) -> None:
    assert PHRASES[name](study) in status
