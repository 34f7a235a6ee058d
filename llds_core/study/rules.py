"""Rules that check a claim against stored runs.

A rule is a model that is read from the YAML of a study's claims and answers `check` with a
`Finding`, or None where the evidence does not suffice. No bound is fitted to a run. Three kinds
occur:

- counts: a property holds for an arm when at least `MOST` of its seeds show it; the effect is their
  share with Wilson's interval;
- effects: a mean over seeds, of paired differences where two arms are compared, holds when its 95 %
  interval (Student's t) lies on the claimed side of a bound;
- trends: a rank correlation over runs holds when it has the claimed sign and a permutation test
  gives it a p below 0.05.

A rule that no outcome of so few runs could meet gives no verdict, whatever came out: its `holds` is
None, its effect is told. Survival is compared up to a common horizon: a run that has not collapsed
within its steps counts as "at least so long", never as a collapse (see `stats`).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from llds_core.config import load_experiment
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, did_you_mean
from llds_core.reporting import claim_measures
from llds_core.reporting.claim_measures import paired_survival
from llds_core.reporting.figures import BASELINE
from llds_core.reporting.run_view import SURGE, StoredRun
from llds_core.reporting.stats import (
    Interval,
    mcnemar,
    paired_proportions,
    proportion_interval,
    restricted_steps,
    spearman_trend,
    student_interval,
)
from llds_core.runs.identity import flat
from llds_core.study.evidence import (
    SEEDS,
    Bounded,
    Evidence,
    Finding,
    Rule,
    finding,
    mean_finding,
)
from llds_core.study.mechanism_rule import Mechanism


def _one_of(names: Iterable[str]) -> AfterValidator:
    """Refuse other names than these, with the nearest."""

    def check(name: str) -> str:
        if name not in names:
            raise ConfigError(f'unknown name "{name}": {did_you_mean(name, names)}')
        return name

    return AfterValidator(check)


MOST = 0.8
_ALPHA = 0.05


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


# Of a run and the steps that count; None where the run cannot show it.
OUTCOMES: dict[str, Callable[[StoredRun, int], bool | None]] = {
    "survives": _survives,
    "calm": _calm,
    "rises_then_collapses": lambda run, steps: run.rises_then_collapses(),
    "all_phases": lambda run, steps: claim_measures.all_phases(run),
    "spirals": _spirals,
    "no_spiral": lambda run, steps: not run.spiral.fires if run.spiral.judged else None,
}
Outcome = Annotated[str, _one_of(OUTCOMES)]


class Count(Rule):
    """Most seeds of `arm` show the outcome; seeds that cannot show it do not count.

    Attributes:
        count: the outcome.
        arm: whose seeds.
        times: within so many times the steps that the baseline was given.
        where: an outcome of the baseline: only seeds on which it shows that.
        least: seeds without which nothing is said.
        to_hold: seeds without which it is not said to hold.
    """

    count: Outcome
    arm: str
    times: int = 1
    where: Outcome | None = None
    least: int = SEEDS
    to_hold: int = 1

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        steps = self.times * evidence.steps()
        runs = evidence.arm(self.arm)
        if self.where:
            base = evidence.arm(BASELINE)
            runs = {s: run for s, run in runs.items() if s in base and self._premise(base[s])}
        shown = [(run, OUTCOMES[self.count](run, steps)) for run in runs.values()]
        shown = [(run, value) for run, value in shown if value is not None]
        if len(shown) < self.least:
            return None
        share = proportion_interval(sum(bool(value) for _, value in shown), len(shown))
        holds: bool | None = share.estimate >= MOST
        if holds and len(shown) < self.to_hold:
            holds = None
        return finding(holds, share, [run for run, _ in shown])

    def _premise(self, run: StoredRun) -> bool:
        return bool(self.where and OUTCOMES[self.where](run, run.length))


class FewerCollapse(Rule):
    """Fewer seeds of one arm than of another collapse within the steps that the baseline was given.

    The effect is the difference of their shares over the seeds that both have.
    """

    fewer_collapse: str
    against: str

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        steps = evidence.steps()
        arms = [evidence.arm(self.fewer_collapse), evidence.arm(self.against)]
        outcomes = [
            {s: c for s, run in arm.items() if (c := run.collapsed_by(steps)) is not None}
            for arm in arms
        ]
        seeds = sorted(outcomes[0].keys() & outcomes[1].keys())
        if len(seeds) < SEEDS:
            return None
        found, p = paired_proportions(*outcomes), mcnemar(*outcomes)
        # If all of one arm collapsed and none of the other.
        decidable = 2 * 0.5 ** len(seeds) < _ALPHA
        fewer = found.estimate < 0 and p < _ALPHA
        runs = [arm[seed] for arm in arms for seed in seeds]
        return finding(fewer if decidable else None, found, runs)


class Longer(Rule):
    """Runs of these arms, on average over the arms, survive longer than `against` on the same seed;
    no verdict where none of the runs collapses.
    """

    longer: tuple[str, ...]
    against: str

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        base = evidence.arm(self.against)
        arms = [evidence.arm(name) for name in self.longer]
        gains = [paired_survival(runs, base) for runs in arms]
        seeds = sorted(set.intersection(*(set(gain) for gain in gains)))
        means = {seed: float(np.mean([gain[seed] for gain in gains])) for seed in seeds}
        compared = [*arms, base]
        found = mean_finding(means, compared, lambda interval: interval.low > 0)
        fell = any(arm[seed].collapse is not None for arm in compared for seed in means)
        return found if fell or found is None else replace(found, holds=None)


# Of a single run, with the metrics that the measure is about.
MEASURES: dict[str, Callable[..., float]] = {
    "early_rise": claim_measures.early_rise,
    "likelihood_gap": claim_measures.likelihood_gap,
    "likelihood_gap_growth": claim_measures.likelihood_gap_growth,
    "first_action_gap": claim_measures.first_action_gap,
    "first_action_fall": claim_measures.first_action_fall,
    "change": StoredRun.change,
    "relative_change": claim_measures.relative_change,
    "gradient_growth": claim_measures.gradient_growth,
}


class Effect(Bounded):
    """The mean of a measure over the seeds of `arm` lies beyond a bound.

    Attributes:
        effect: a measure of a single run.
        arm: whose seeds.
        metrics: what the measure is about, if it says so.
        collapsing: only runs that collapse.
        ratio: the measure is a logarithm; effect and bound are the ratio that it stands for.
    """

    effect: Annotated[str, _one_of(MEASURES)]
    arm: str
    metrics: tuple[Annotated[str, _one_of(METRICS)], ...] = ()
    collapsing: bool = False
    ratio: bool = False

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        runs = evidence.collapsing(self.arm) if self.collapsing else evidence.arm(self.arm)
        measure = MEASURES[self.effect]
        values = {s: measure(run, *self.metrics) for s, run in runs.items()}
        found = mean_finding(values, [runs], self.beyond)
        if found is None or not self.ratio:
            return found
        log = found.effect
        low, high = float(np.exp(log.low)), float(np.exp(log.high))
        ratio = Interval(float(np.exp(log.estimate)), low, high, log.n)
        return replace(found, effect=ratio, holds=self.beyond(ratio))


def _score(run: StoredRun, checkpoint: str, steps: int) -> float:
    found = run.heldout(checkpoint, within=steps)
    return np.nan if found is None else found


# Of two runs of a seed and the steps that the baseline was given.
PAIRS: dict[str, Callable[[StoredRun, StoredRun, int], float]] = {
    "final_reward": lambda run, other, steps: claim_measures.final_gain(run, other),
    "best_reward": lambda run, other, steps: claim_measures.best_gain(run, other),
    "likelihood_kept": lambda run, other, steps: claim_measures.likelihood_kept(run, other),
    "searches": lambda run, other, steps: claim_measures.more_searches(run, other),
    "heldout_best": lambda a, b, steps: _score(a, "best", steps) - _score(b, "best", steps),
    "heldout_last": lambda a, b, steps: _score(a, "last", steps) - _score(b, "last", steps),
}
Pair = Annotated[str, _one_of(PAIRS)]


class Paired(Bounded):
    """The mean difference of `arm` and `against`, over the seeds that both have, lies beyond a
    bound. Held-out scores are those within the steps that the baseline was given.
    """

    paired: Pair
    arm: str
    against: str

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        one, other = evidence.arm(self.arm), evidence.arm(self.against)
        measure, steps = PAIRS[self.paired], evidence.steps()
        values = {s: measure(one[s], other[s], steps) for s in one.keys() & other.keys()}
        return mean_finding(values, [one, other], self.beyond)


class Ordered(Rule):
    """On average over shared seeds every arm is at least level with the next, and of the difference
    between the first and the last the whole interval lies above 0. The effect is that difference.
    """

    ordered: Pair
    arms: tuple[str, ...]

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        pairs = [(self.arms[0], self.arms[-1]), *zip(self.arms, self.arms[1:], strict=False)]
        findings = []
        for one, other in pairs:
            rule = Paired(paired=self.ordered, arm=one, against=other, above=0)
            found = rule.check(evidence)
            if found is None:
                return None
            findings.append(found)
        ends, *steps = findings
        ordered = all(found.effect.estimate >= 0 for found in steps)
        runs = tuple(dict.fromkeys(name for found in findings for name in found.runs))
        return replace(ends, holds=ends.holds and ordered, runs=runs)


class Leads(Rule):
    """In most collapsing runs a metric leaves its extreme for good, and on average it is halfway
    before the reward is. The effect is that lead, in steps.
    """

    leads: Annotated[str, _one_of(METRICS)]
    arm: str
    leaves: Literal["maximum", "minimum"]

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        runs = evidence.collapsing(self.arm)
        if len(runs) < SEEDS:
            return None
        sign = 1 if self.leaves == "maximum" else -1
        lead = student_interval(
            [
                run.halfway("reward") - run.halfway(self.leads, sign)
                for run in runs.values()
                if run.leaves(self.leads, sign)
            ]
        )
        return finding(lead.n / len(runs) >= MOST and lead.low > 0, lead, runs.values())


_SETTINGS = flat(load_experiment("smoke/grpo").to_dict())


class Trend(Rule):
    """Survival goes with a setting in the direction `sign`, within a seed and a learning rate; None
    without three settings there, or without a trend to speak of because nothing collapses.
    """

    trend: Annotated[str, _one_of(_SETTINGS)]
    arms: tuple[str, ...]
    sign: Literal[-1, 1]

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        section, _, key = self.trend.partition(".")
        settings = [
            (float(run.setting(section, key)), run)
            for name in evidence.arms
            if name in self.arms
            for run in evidence.arm(name).values()
        ]
        strata: dict[tuple[int, float], list[tuple[float, StoredRun]]] = {}
        for value, run in sorted(settings, key=lambda pair: pair[0]):
            place = (run.seed, float(run.setting("training", "learning_rate")))
            strata.setdefault(place, []).append((value, run))
        kept = [
            (value, run, place)
            for place, pairs in strata.items()
            if len({value for value, _ in pairs}) > 2
            for value, run in pairs
        ]
        steps = restricted_steps([run.survival() for _, run, _ in kept]).tolist()
        values, _, places = zip(*kept, strict=True) if kept else ((), (), ())
        found = spearman_trend(values, steps, places)
        if np.isnan(found.p):
            return None
        clear = self.sign * found.correlation.estimate > 0 and found.p < _ALPHA
        holds = clear if found.least_p < _ALPHA else None
        return finding(holds, found.correlation, [run for _, run, _ in kept])


# By the key that names the rule.
RULES: dict[str, type[Rule]] = {
    "count": Count,
    "fewer_collapse": FewerCollapse,
    "longer": Longer,
    "effect": Effect,
    "paired": Paired,
    "ordered": Ordered,
    "leads": Leads,
    "trend": Trend,
    "mechanism": Mechanism,
}
