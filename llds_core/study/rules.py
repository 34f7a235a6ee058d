"""Rules that check a claim against stored runs.

A rule is read from the YAML of a study's claims, where its first key names it, and makes a
`Finding` of the evidence, `NOTHING` where that does not suffice. No bound is fitted to a run. Three
kinds occur:

- counts: a property holds for an arm when at least `MOST` of its seeds show it; the effect is their
  share with Wilson's interval;
- effects: a mean over seeds, of paired differences where two arms are compared, holds when its 95 %
  interval (Student's t) lies on the claimed side of a bound;
- trends: a rank correlation over runs holds when it has the claimed sign and a permutation test
  gives it a p below 0.05.

A rule that no outcome of so few runs could meet gives no verdict, whatever came out: its `holds` is
None, its effect is told. Survival is compared up to a common horizon: a run that has not collapsed
within its steps counts as "at least so long", never as a collapse (see `claim_statistics`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from llds_core.config import load_experiment
from llds_core.config.checked import checked
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, did_you_mean
from llds_core.monitor.detectors import DETECTORS
from llds_core.monitor.training_log import to_log
from llds_core.reporting.run_view import BASELINE, SURGE, StoredRun
from llds_core.reporting.stats import Interval, student_interval
from llds_core.runs.identity import flat
from llds_core.study.claim_statistics import (
    mcnemar,
    paired_proportions,
    proportion_interval,
    spearman_trend,
    survived_steps,
)
from llds_core.study.evidence import (
    CHECKPOINTS,
    MEASURES,
    PAIRS,
    Evidence,
    RunsBySeed,
    paired_survival,
)

MOST = 0.8
_ALPHA = 0.05
_SEEDS = 3  # without which a mean or a share says nothing
MEASURED_SEEDS = 2  # measurements on checkpoints are dear; the interval is accordingly wide


@dataclass(frozen=True)
class Finding:
    """What the evidence says of a claim."""

    holds: bool | None  # None when so few runs could not meet its rule
    effect: Interval
    runs: tuple[tuple[str, int], ...]  # it rests on, each as arm and seed
    contradicted: bool = False  # more than not shown: the interval lies on the other side


NOTHING = Finding(None, student_interval([]), ())


def together(findings: Sequence[Finding]) -> Finding:
    """What findings say if all have to hold, with the effect of the first; nothing if one does."""
    if NOTHING in findings:
        return NOTHING
    verdicts = [each.holds for each in findings]
    holds = None if None in verdicts else all(verdicts)
    runs = dict.fromkeys(run for each in findings for run in each.runs)
    contradicted = any(each.contradicted for each in findings)
    return Finding(holds, findings[0].effect, tuple(runs), contradicted)


@checked
class Rule:
    """What a claim takes to hold."""

    def check(self, evidence: Evidence) -> Finding:
        """What the evidence says of it; `NOTHING` where that does not suffice."""
        return self._find(evidence)

    def _find(self, evidence: Evidence) -> Finding:
        raise NotImplementedError

    def named_arms(self) -> set[str]:
        """Arms it is about."""
        values = vars(self)
        names = [values.get(key) for key in ("arm", "against", "fewer_collapse")]
        return {str(n) for n in (*names, *values.get("arms", ()), *values.get("longer", ())) if n}


def _one_of(names: Iterable[str]) -> AfterValidator:
    """Refuse other names than these, with the nearest."""

    def check(name: str) -> str:
        if name not in names:
            raise ConfigError(f'unknown name "{name}": {did_you_mean(name, names)}')
        return name

    return AfterValidator(check)


def _mean_of(values: Mapping[int, float], arms: Sequence[str], least: int = _SEEDS) -> Finding:
    """Finding on the mean of `values` by seed, not judged yet; nothing below `least` of them."""
    known = {int(seed): value for seed, value in values.items() if np.isfinite(value)}
    if len(known) < least:
        return NOTHING
    return Finding(None, student_interval([*known.values()]), tuple(product(arms, sorted(known))))


def _shown(
    runs: RunsBySeed, outcome: Callable[[StoredRun, int], bool | None], steps: int
) -> dict[int, bool]:
    """An outcome within `steps` by seed, where the run can show it."""
    found = {seed: outcome(run, steps) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _survives(run: StoredRun, steps: int) -> bool | None:
    collapsed = run.collapsed_by(steps)
    return None if collapsed is None or not steps else not collapsed


def _calm(run: StoredRun, steps: int) -> bool | None:
    growth = run.entropy_growth(steps)
    known = bool(steps) and run.known_to(steps) and np.isfinite(growth)
    return bool(growth < SURGE) if known else None


def _spirals(run: StoredRun, steps: int) -> bool | None:
    judged = run.spiral.judged and run.spiral.collapse is not None
    return run.spiral.fires if judged else None


def _all_phases(run: StoredRun, steps: int) -> bool | None:
    # Their order is part of their definition.
    names = [phase.name for phase in run.phases]
    every = ["stagnation", "decay", "acceleration", "collapse"]
    return names == every if "collapse" in names else None


def _warned(name: str, run: StoredRun, steps: int) -> bool | None:
    """Whether an alarm came before the collapse of a run that has one."""
    if run.collapse_step is None:
        return None
    log = to_log(run.metrics.to_dict("records"), run.name)
    row = DETECTORS[name].alarm_row(DETECTORS[name].scores(log))
    return row is not None and bool(log.table["step"].iloc[row] < run.collapse_step)


# Of a run and the steps that count; None where the run cannot show it.
OUTCOMES: dict[str, Callable[[StoredRun, int], bool | None]] = {
    "survives": _survives,
    "calm": _calm,
    "rises_then_collapses": lambda run, steps: run.rises_then_collapses(),
    "all_phases": _all_phases,
    "spirals": _spirals,
    "clip_warned": partial(_warned, "clip_saturation"),
    "drop_warned": partial(_warned, "reward_drop"),
    "no_spiral": lambda run, steps: not run.spiral.fires if run.spiral.judged else None,
}
Outcome = Annotated[str, _one_of(OUTCOMES)]


@checked
class Count(Rule):
    """Most seeds of `arm` show the outcome; seeds that cannot show it do not count."""

    count: Outcome
    arm: str
    times: int = 1  # within so many times the steps that the baseline was given
    where: Outcome | None = None  # only seeds on which the baseline shows this
    least: int = _SEEDS  # seeds without which nothing is said
    to_hold: int = 1  # seeds without which it is not said to hold

    def _find(self, evidence: Evidence) -> Finding:
        runs = evidence.arm(self.arm)
        if self.where:
            premise, base = OUTCOMES[self.where], evidence.arm(BASELINE)
            runs = {s: r for s, r in runs.items() if s in base and premise(base[s], base[s].length)}
        shown = _shown(runs, OUTCOMES[self.count], self.times * evidence.steps)
        if len(shown) < self.least:
            return NOTHING
        share = proportion_interval(sum(shown.values()), len(shown))
        holds = share.estimate >= MOST
        decided = not holds or len(shown) >= self.to_hold
        rests_on = tuple(product([self.arm], shown))
        return Finding(holds if decided else None, share, rests_on, share.high < MOST)


@checked
class FewerCollapse(Rule):
    """Fewer seeds of one arm than of another collapse within the steps that the baseline was given.

    The effect is the difference of their shares over the seeds that both have.
    """

    fewer_collapse: str
    against: str

    def _find(self, evidence: Evidence) -> Finding:
        arms = (self.fewer_collapse, self.against)
        one, other = (
            _shown(evidence.arm(arm), StoredRun.collapsed_by, evidence.steps) for arm in arms
        )
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) < _SEEDS:
            return NOTHING
        found = paired_proportions(one, other)
        differ = mcnemar(one, other) < _ALPHA
        # If all of one arm collapsed and none of the other.
        decidable = 2 * 0.5 ** len(seeds) < _ALPHA
        fewer = found.estimate < 0 and differ if decidable else None
        return Finding(fewer, found, tuple(product(arms, seeds)), found.estimate > 0 and differ)


@checked
class Longer(Rule):
    """Runs of these arms, on average over the arms, survive longer than `against` on the same seed;
    no verdict where none of the runs collapses.
    """

    longer: tuple[str, ...]
    against: str

    def _find(self, evidence: Evidence) -> Finding:
        base = evidence.arm(self.against)
        arms = [evidence.arm(name) for name in self.longer]
        gains = pd.DataFrame([paired_survival(runs, base) for runs in arms])
        means = gains.mean(skipna=False).dropna()  # of seeds that all arms have
        found = _mean_of(means.to_dict(), [*self.longer, self.against])
        fell = any(arm[s].collapse is not None for arm in [*arms, base] for s in means.index)
        if found is NOTHING or not fell:
            return found
        low, high = found.effect.low, found.effect.high
        return replace(found, holds=bool(low > 0), contradicted=bool(high < 0))


@checked
class Effect(Rule):
    """The mean of a measure over the seeds of `arm`, or of its difference to `against` over the
    seeds that both have, lies beyond a bound.
    """

    effect: Annotated[str, _one_of([*MEASURES, *PAIRS, *CHECKPOINTS])]
    arm: str
    against: str = ""
    metrics: tuple[Annotated[str, _one_of(METRICS)], ...] = ()  # of a run, what it is about
    factor: str = ""  # of the theorem: with what likelihood is correlated
    collapsing: bool = False  # only runs that collapse
    ratio: bool = False  # of a logarithm, to tell and bound the ratio that it stands for
    above: float = -np.inf
    below: float = np.inf

    def _find(self, evidence: Evidence) -> Finding:
        runs = evidence.collapsing(self.arm) if self.collapsing else evidence.arm(self.arm)
        arms, least = [arm for arm in (self.arm, self.against) if arm], _SEEDS
        other = evidence.arm(self.against)
        shared = runs.keys() & other.keys()
        if measure := MEASURES.get(self.effect):
            values = {seed: measure(run, *self.metrics) for seed, run in runs.items()}
            if self.against:
                values = {s: values[s] - measure(other[s], *self.metrics) for s in shared}
        elif pair := PAIRS.get(self.effect):
            values = {seed: pair(runs[seed], other[seed], evidence.steps) for seed in shared}
        else:
            values = CHECKPOINTS[self.effect](evidence, self.arm, self.factor).to_dict()
            least = MEASURED_SEEDS
        return self.judge(values, arms, least)

    def judge(self, values: Mapping[int, float], arms: Sequence[str], least: int) -> Finding:
        """Judge the mean of `values` by seed; nothing below `least` of them."""
        found = _mean_of(values, arms, least)
        if found is NOTHING:
            return NOTHING
        mean = found.effect
        if self.ratio:
            estimate, low, high = np.exp(mean[:3]).tolist()
            mean = Interval(estimate, low, high, mean.n)
        holds = bool(self.above < mean.low and mean.high < self.below)
        beyond = bool(mean.high <= self.above or mean.low >= self.below)
        return replace(found, effect=mean, holds=holds, contradicted=beyond)


@checked
class Ordered(Rule):
    """On average over shared seeds every arm is at least level with the next, and of the difference
    between the first and the last the whole interval lies above 0. The effect is that difference.
    """

    ordered: Annotated[str, _one_of(PAIRS)]
    arms: tuple[str, ...]

    def _find(self, evidence: Evidence) -> Finding:
        pairs = [(self.arms[0], self.arms[-1]), *pairwise(self.arms)]
        ends, *steps = [Effect(self.ordered, *pair, above=0).check(evidence) for pair in pairs]
        found = together([ends, *steps])
        if found is NOTHING:
            return NOTHING
        holds = bool(ends.holds) and all(step.effect.estimate >= 0 for step in steps)
        return replace(found, holds=holds, contradicted=ends.contradicted)


@checked
class Leads(Rule):
    """In most collapsing runs a metric leaves its extreme for good, and on average it is halfway
    before the reward is. The effect is that lead, in steps.
    """

    leads: Annotated[str, _one_of(METRICS)]
    arm: str
    leaves: Literal["maximum", "minimum"]

    def _find(self, evidence: Evidence) -> Finding:
        runs = evidence.collapsing(self.arm)
        if len(runs) < _SEEDS:
            return NOTHING
        sign = 1 if self.leaves == "maximum" else -1
        leads = {
            seed: run.halfway("reward") - run.halfway(self.leads, sign)
            for seed, run in runs.items()
            if run.leaves(self.leads, sign)
        }
        lead = student_interval([*leads.values()])
        holds = bool(lead.n / len(runs) >= MOST and lead.low > 0)
        rare = proportion_interval(lead.n, len(runs)).high < MOST
        rests_on = tuple(product([self.arm], leads))
        return Finding(holds, lead, rests_on, bool(rare or lead.high < 0))


@checked
class Trend(Rule):
    """Survival rises or falls with a setting, within a seed and a learning rate; nothing without
    three settings there, or without a trend to speak of because nothing collapses.
    """

    trend: Annotated[str, _one_of(flat(load_experiment("smoke/grpo").to_dict()))]
    arms: tuple[str, ...]
    rises: bool

    def _find(self, evidence: Evidence) -> Finding:
        section, _, key = self.trend.partition(".")
        rows = [
            (arm, run, seed, run.setting("training", "learning_rate"), run.setting(section, key))
            for arm in sorted(self.arms)
            for seed, run in evidence.arm(arm).items()
        ]
        table = pd.DataFrame(rows, columns=["arm", "run", "seed", "rate", "value"])
        places = table.sort_values("value", kind="stable").groupby(["seed", "rate"], sort=False)
        several = [group for _, group in places if group["value"].nunique() > 2]
        if not several:
            return NOTHING
        kept = pd.concat(several)
        steps = survived_steps(kept["run"].tolist())
        strata = [*zip(kept["seed"], kept["rate"], strict=True)]
        found = spearman_trend(kept["value"].tolist(), steps.tolist(), strata)
        if np.isnan(found.p):
            return NOTHING
        claimed = (found.correlation.estimate > 0) == self.rises
        holds = bool(claimed and found.p < _ALPHA) if found.least_p < _ALPHA else None
        named = tuple(zip(kept["arm"], kept["seed"], strict=True))
        return Finding(holds, found.correlation, named, not claimed and found.p < _ALPHA)


# By the key that names the rule, its first.
RULES: dict[str, type[Rule]] = {
    next(iter(rule.__annotations__)): rule
    for rule in (Count, FewerCollapse, Longer, Effect, Ordered, Leads, Trend)
}
