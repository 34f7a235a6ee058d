"""Rules that check a claim against runs; `claims` lists what they are applied to.

Every function here takes what is to be compared and returns a rule: a function of the evidence that
answers with a `Finding`, or None where the evidence does not suffice. No bound is fitted to a run.
Three kinds occur:

- counts: a property holds for an arm when at least `MOST` of its seeds show it, the effect with
  Wilson's interval;
- effects: a mean over seeds, of paired differences where two arms are compared, holds when its 95 %
  interval (Student's t) lies on the claimed side of a bound; ratios are averaged as logarithms;
- trends: a rank correlation over runs holds when it has the claimed sign and a permutation test
  gives it a p below 0.05.

A rule that no outcome of so few runs could meet gives no verdict, whatever came out: its `holds` is
None, its effect is told.

Survival is compared up to a common horizon: a run that has not collapsed within its steps counts as
"at least so long", never as a collapse (see `stats`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llds_core.reporting.claim_values import Value
from llds_core.reporting.run_view import Evidence, Measured, Measureds, paired_survival
from llds_core.reporting.stats import (
    Interval,
    common_horizon,
    mcnemar,
    paired_proportions,
    proportion_interval,
    restricted_steps,
    spearman_trend,
    student_interval,
)

MOST = 0.8
SEEDS = 3
FEW_SEEDS = 2
SURGE = 2.0
_ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """What the evidence says of a claim.

    Attributes:
        holds: whether its rule is met; None when so few runs could not meet it.
        effect: size of the effect with its 95 % interval.
        seeds: seeds it rests on.
        runs: names of the runs it rests on.
    """

    holds: bool | None
    effect: Interval
    seeds: frozenset[int]
    runs: tuple[str, ...]


Rule = Callable[[Evidence], Finding | None]
Outcome = Callable[[Measured], bool | None]
PairValue = Callable[[Measured, Measured], float]
Verdict = Callable[[Interval], bool]


def above(bound: float) -> Verdict:
    """The whole interval lies above `bound`."""
    return lambda interval: bool(interval.low > bound)


def below(bound: float) -> Verdict:
    """The whole interval lies below `bound`."""
    return lambda interval: bool(interval.high < bound)


def both(first: Rule, second: Rule) -> Rule:
    """Two rules at once; the effect is that of the first."""

    def rule(evidence: Evidence) -> Finding | None:
        one, two = first(evidence), second(evidence)
        if one is None or two is None:
            return None
        runs = tuple(dict.fromkeys(one.runs + two.runs))
        return Finding(one.holds and two.holds, one.effect, one.seeds | two.seeds, runs)

    return rule


def count(arm: str, outcome: Outcome) -> Rule:
    """Most seeds of `arm` show `outcome`; seeds where it is None do not count."""
    return lambda evidence: _counted(evidence.arm(arm), outcome, SEEDS)


def survives(arm: str, times: int = 1, *, least: int = SEEDS) -> Rule:
    """Most seeds of `arm` have no collapse within `times` the steps that GRPO was given."""

    def rule(evidence: Evidence) -> Finding | None:
        return _survivors(evidence.arm(arm), times * evidence.baseline_steps(), least)

    return rule


def count_where(arm: str, outcome: Outcome, premise: Outcome) -> Rule:
    """As `count`, on the seeds on which GRPO shows `premise`."""

    def rule(evidence: Evidence) -> Finding | None:
        return _counted(_only(evidence.arm(arm), evidence.grpo_shows(premise)), outcome, SEEDS)

    return rule


def fewer_collapse(first: str, second: str) -> Rule:
    """Fewer seeds of `first` than of `second` collapse within the steps GRPO was given. The effect
    is the difference of their shares over the seeds that both have.
    """

    def rule(evidence: Evidence) -> Finding | None:
        steps = evidence.baseline_steps()
        arms = [evidence.arm(first), evidence.arm(second)]
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
        return _finding(fewer if decidable else None, found, runs)

    return rule


def stays_up(arm: str, weight: float | None = None) -> Rule:
    """Most seeds of `arm`, or of its runs with a weight of the penalty, have no collapse within the
    steps that GRPO was given. It takes three seeds to say that it holds, two that it does not.
    """

    def rule(evidence: Evidence) -> Finding | None:
        runs = evidence.arm(arm) if weight is None else _weights(evidence, arm).get(weight, {})
        found = _survivors(runs, evidence.baseline_steps(), FEW_SEEDS)
        few = found and found.holds and len(found.seeds) < SEEDS
        return replace(found, holds=None) if few else found

    return rule


def stays_calm(arm: str) -> Rule:
    """In most seeds of `arm` windowed entropy stays below `SURGE` times its first value."""

    def rule(evidence: Evidence) -> Finding | None:
        steps = evidence.baseline_steps()

        def calm(run: Measured) -> bool | None:
            growth = run.entropy_growth(steps)
            return growth < SURGE if run.known_to(steps) and np.isfinite(growth) else None

        return _counted(evidence.arm(arm), calm, SEEDS) if steps else None

    return rule


def delays(*weights: float) -> Rule:
    """With these weights of the penalty a run survives longer than GRPO on that seed, on average
    over the weights; no verdict where none of these runs collapses.
    """

    def rule(evidence: Evidence) -> Finding | None:
        base, found = evidence.arm("grpo"), _weights(evidence)
        arms = [found.get(weight, {}) for weight in weights]
        gains = [paired_survival(runs, base) for runs in arms]
        seeds = sorted(set.intersection(*(set(gain) for gain in gains)))
        means = {seed: float(np.mean([gain[seed] for gain in gains])) for seed in seeds}
        return _gained(means, [*arms, base])

    return rule


def longer(first: str, second: str) -> Rule:
    """`first` survives more steps than `second` on the same seeds; no verdict where none of these
    runs collapses.
    """

    def rule(evidence: Evidence) -> Finding | None:
        arms = [evidence.arm(first), evidence.arm(second)]
        return _gained(paired_survival(*arms), arms)

    return rule


def effect(arm: str, value: Value, verdict: Verdict) -> Rule:
    """The mean of `value` over the seeds of `arm` meets `verdict`."""

    def rule(evidence: Evidence) -> Finding | None:
        runs = evidence.arm(arm)
        return _effect({seed: value(run) for seed, run in runs.items()}, [runs], verdict)

    return rule


def collapsing_effect(arm: str, value: Value, verdict: Verdict) -> Rule:
    """As `effect`, over the runs that collapse."""

    def rule(evidence: Evidence) -> Finding | None:
        runs = evidence.collapsing(arm)
        return _effect({seed: value(run) for seed, run in runs.items()}, [runs], verdict)

    return rule


def paired(first: str, second: str, value: PairValue, verdict: Verdict) -> Rule:
    """The mean of `value` over the seeds that both arms have meets `verdict`."""
    return lambda evidence: _paired(evidence, first, second, value, verdict)


def as_ratio(rule: Rule) -> Rule:
    """Turn an effect that is a logarithm into the ratio it stands for."""

    def exponentiated(evidence: Evidence) -> Finding | None:
        found = rule(evidence)
        if found is None:
            return None
        logarithm = found.effect
        bounds = np.exp([logarithm.estimate, logarithm.low, logarithm.high])
        return replace(found, effect=Interval(*map(float, bounds), logarithm.n, logarithm.method))

    return exponentiated


def leads(metric: str, sign: int) -> Rule:
    """In most collapsing runs of GRPO `metric` leaves its maximum (`sign` 1) or minimum (-1) for
    good, and on average is halfway before the reward is. The effect is that lead, in steps.
    """

    def rule(evidence: Evidence) -> Finding | None:
        runs = evidence.collapsing("grpo")
        if len(runs) < SEEDS:
            return None
        lead = student_interval(
            [
                run.halfway("reward", 1) - run.halfway(metric, sign)
                for run in runs.values()
                if run.leaves(metric, sign)
            ]
        )
        return _finding(lead.n / len(runs) >= MOST and lead.low > 0, lead, runs.values())

    return rule


def heldout_gain(first: str, second: str, checkpoint: str = "best") -> Rule:
    """Held-out exact match of `first` is above that of `second` on the same seeds, both within the
    steps that GRPO was given.
    """

    def rule(evidence: Evidence) -> Finding | None:
        def gain(one: Measured, other: Measured) -> float:
            return evidence.score(one, checkpoint) - evidence.score(other, checkpoint)

        return _paired(evidence, first, second, gain, above(0))

    return rule


def gates_ordered(by: PairValue | None) -> Rule:
    """Action gate >= response gate >= token gate on average over shared seeds, and action above
    token beyond doubt. Compared by a value of pairs, or with None by held-out exact match.
    """
    arms = ("llds-action", "llds-response", "llds-token")

    def pair(first: str, second: str) -> Rule:
        if by is None:
            return heldout_gain(first, second)
        return paired(first, second, by, above(0))

    def rule(evidence: Evidence) -> Finding | None:
        ends = pair(arms[0], arms[2])(evidence)
        steps = [pair(*neighbours)(evidence) for neighbours in (arms[:2], arms[1:])]
        if ends is None or None in steps:
            return None
        runs = tuple(dict.fromkeys(name for found in (ends, *steps) for name in found.runs))
        ordered = all(found.effect.estimate >= 0 for found in steps)
        return replace(ends, holds=ends.holds and ordered, runs=runs)

    return rule


def weight_trend(evidence: Evidence) -> Finding | None:
    """The larger the weight of the penalty, GRPO having none, the longer a run survives."""
    return _trend(_weight_settings(evidence, "grpo", "llds-action"), 1)


def updates_trend(arms: Sequence[str], *prefixes: str) -> Rule:
    """The more updates GRPO makes on a rollout, the fewer steps it survives: over `arms` and those
    whose name starts with a prefix, within a seed and a learning rate.
    """

    def rule(evidence: Evidence) -> Finding | None:
        return _trend(evidence.settings(arms, prefixes, "training", "updates_per_rollout"), -1)

    return rule


def _counted(runs: Measureds, outcome: Outcome, least: int) -> Finding | None:
    shown = [(run, outcome(run)) for run in runs.values()]
    shown = [(run, value) for run, value in shown if value is not None]
    if len(shown) < least:
        return None
    share = proportion_interval(sum(bool(value) for _, value in shown), len(shown))
    return _finding(share.estimate >= MOST, share, [run for run, _ in shown])


def _survivors(runs: Measureds, steps: int, least: int) -> Finding | None:
    def survives(run: Measured) -> bool | None:
        collapsed = run.collapsed_by(steps)
        return None if collapsed is None else not collapsed

    return _counted(runs, survives, least) if steps else None


def _only(runs: Measureds, seeds: Collection[int]) -> Measureds:
    return {seed: run for seed, run in runs.items() if seed in seeds}


def _gained(gains: Mapping[int, float], arms: Sequence[Measureds]) -> Finding | None:
    """Finding on steps gained by seed; no verdict where no run of these seeds collapses."""
    fell = any(arm[seed].collapse is not None for arm in arms for seed in gains)
    found = _effect(gains, arms, above(0))
    return found if fell or found is None else replace(found, holds=None)


def _paired(
    evidence: Evidence, first: str, second: str, value: PairValue, verdict: Verdict
) -> Finding | None:
    arms = [evidence.arm(first), evidence.arm(second)]
    shared = arms[0].keys() & arms[1].keys()
    values = {seed: value(arms[0][seed], arms[1][seed]) for seed in shared}
    return _effect(values, arms, verdict)


def _effect(
    values: Mapping[int, float], arms: Sequence[Measureds], verdict: Verdict
) -> Finding | None:
    """Finding on the mean of `values` by seed; None below `SEEDS` of them."""
    present = {seed: value for seed, value in values.items() if np.isfinite(value)}
    if len(present) < SEEDS:
        return None
    interval = student_interval([*present.values()])
    runs = [arm[seed] for arm in arms for seed in sorted(present)]
    return _finding(verdict(interval), interval, runs)


def _trend(settings: Sequence[tuple[float, Measured]], sign: int) -> Finding | None:
    """Finding on survival against a setting, within a seed and a learning rate; None without three
    settings there, or without a trend to speak of because nothing collapses.
    """
    strata: dict[tuple[int, float], list[tuple[float, Measured]]] = {}
    for value, run in settings:
        place = (run.run.seed, float(run.setting("training", "learning_rate")))
        strata.setdefault(place, []).append((value, run))
    kept = [
        (value, run, place)
        for place, pairs in strata.items()
        if len({value for value, _ in pairs}) > 2
        for value, run in pairs
    ]
    survivals = [run.survival() for _, run, _ in kept]
    steps = restricted_steps(survivals, common_horizon(survivals))
    trend = spearman_trend([value for value, _, _ in kept], steps, [place for *_, place in kept])
    if np.isnan(trend.p):
        return None
    clear = sign * trend.correlation.estimate > 0 and trend.p < _ALPHA
    holds = clear if trend.least_p < _ALPHA else None
    return _finding(holds, trend.correlation, [run for _, run, _ in kept])


def _weights(evidence: Evidence, *arms: str) -> dict[float, dict[int, Measured]]:
    """Runs of the penalty's weights by weight and seed."""
    found: dict[float, dict[int, Measured]] = {}
    for weight, run in _weight_settings(evidence, *arms):
        found.setdefault(weight, {})[run.run.seed] = run
    return found


def _weight_settings(evidence: Evidence, *arms: str) -> list[tuple[float, Measured]]:
    return evidence.settings(arms, ("llds-weight-",), "loss", "llds_weight")


def _finding(holds: bool | None, interval: Interval, runs: Iterable[Measured]) -> Finding:
    runs = list(runs)
    names = tuple(dict.fromkeys(run.name for run in runs))
    holds = None if holds is None else bool(holds)
    return Finding(holds, interval, frozenset(run.run.seed for run in runs), names)
