"""The prose of the README's status section says what the published runs say."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import pytest
from published_study import (
    NUMBERS,
    PUBLISHED,
    ROOT,
    STEPS,
    Study,
    interval,
    number,
    run_alone,
    span,
)

from llds_core.config import load_study
from llds_core.diagnostics.phases import collapse_step
from llds_core.reporting.claim_values import rises_then_collapses
from llds_core.reporting.mechanism_figures import (
    before_collapse,
    first_action_data,
    share_table,
)
from llds_core.reporting.run_view import Measured
from llds_core.reporting.stats import mcnemar, student_interval
from llds_core.study.claim_rules import SURGE
from llds_core.study.study_tables import collapse_kind, map_cells

# Arms by updates a rollout, made by epochs over mini-batches of 16.
BY_EPOCHS = {8: "grpo-epochs-1", 16: "grpo-epochs-2", 32: "grpo"}
GRPO_RISES = "GRPO's reward rises"
LAST = "LLDS's last reward is above that of GRPO with"
SEVENTH, KL = f"{LAST} a seventh", f"{LAST} a KL weight of 0.1"
POSITIVE = "Preserving groups without variance, too, gives"
DRIVER, PARTIAL = "A higher driver score", "Among correct responses as likely"


def growth(study: Study, *arms: str, digits: int = 0) -> str:
    """Span of the highest entropy over the first."""
    return span(
        (run.entropy_growth() for arm in arms for run in study.arms[arm].values()), digits, " to "
    )


def listed(values: Iterable[float], digits: int = 2) -> str:
    """`a, b and c`, in the order given."""
    *rest, last = [number(value, digits) for value in values]
    return f"{', '.join(rest)} and {last}"


def mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


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
    return ", ".join(f"{study.collapsed(arm)} at {updates}" for updates, arm in BY_EPOCHS.items())


def leads(study: Study, column: str) -> str:
    rows = study.phases.loc["grpo"]
    return listed(rows[rows["collapse"].notna()].sort_index()[column], 0)


def own_change(study: Study) -> str:
    """What the updates on a rollout do to its own correct responses before a collapse."""
    grpo = [
        last_change(run)
        for _, run in sorted(study.arms["grpo"].items())
        if run.collapse is not None
    ]
    others = [
        last_change(run)
        for arm, runs in study.arms.items()
        for run in runs.values()
        if arm != "grpo" and run.collapse is not None
    ]
    falls = NUMBERS[sum(change < 0 for change in others)]
    return f"{listed(grpo, 1)} nats a response (it falls in {falls} of the {len(others)} other"


def last_change(run: Measured) -> float:
    return run.tail("loglik_change_correct", run.before_collapse)


def map_counts(study: Study) -> str:
    """By panel, how many cells collapse; of GRPO also how many fall below half besides."""
    outcome = {
        panel: [study.arms[cell.method][cell.seed].run.first(STEPS) for cell in group.itertuples()]
        for panel, group in map_cells(load_study("desk")).groupby("panel")
    }
    runs = {p: [Measured(run, run.window) for run in found] for p, found in outcome.items()}
    counts = {p: sum(run.collapse is not None for run in found) for p, found in runs.items()}
    more = sum(run.collapse is None and run.lowest_after_best() < 0.5 for run in runs["grpo"])
    return (
        f"GRPO collapses in {counts['grpo']} of {len(runs['grpo'])} cells and falls below half of "
        f"its best in {more} more, LLDS collapses in {counts['llds']} of {len(runs['llds'])}, a KL "
        f"weight of 0.1 in {counts['kl']} of {len(runs['kl'])}"
    )


def map_collapse(study: Study) -> str:
    run = study.arms["map-llds-updates-32-lr-2"][30]
    kind = collapse_kind(run).removeprefix("likelihood ")
    return f"collapses itself at step {run.step_at(run.collapse)}, likelihood {kind}"


def map_ends(study: Study) -> str:
    """Last rewards of LLDS, GRPO and KL with many updates at half the rate, and with few."""
    cells = map_cells(load_study("desk")).set_index(
        ["panel", "updates_per_rollout", "learning_rate"]
    )
    texts = []
    for updates in (32, 8):
        ends = []
        for panel in ("llds", "grpo", "kl"):
            cell = cells.loc[(panel, updates, 1.75e-4)]
            ends.append(number(study.arms[cell["method"]][cell["seed"]].tail("reward", STEPS)))
        texts.append("{}, GRPO at {}, KL at {}".format(*ends))
    return f"ends at {texts[0]}; with 8 updates at {texts[1]}"


def llds_entropy(study: Study) -> str:
    highest = max(run.entropy_growth() for run in study.arms["llds-action"].values())
    return f"entropy rises by {100 * (highest - 1):.0f} % at most"


def positive_gain(study: Study) -> str:
    """What leaving groups of equal rewards out gains: the claim is of the contrary."""
    effect, low, high = study.bounds(POSITIVE)
    return interval(-effect, -high, -low)


def seventh(study: Study) -> str:
    """GRPO at a seventh of the rate beside LLDS on the same seeds: best, at steps 40 and 60."""
    slow, penalised = (study.arms[arm] for arm in ("grpo-lr-seventh", "llds-action"))
    texts = []
    for runs in (slow, penalised):
        chosen = [runs[seed] for seed in slow]
        best = mean(run.best("reward", 60) for run in chosen)
        later = [mean(run.tail("reward", step) for run in chosen) for step in (40, 60)]
        texts.append(f"{number(best)} ({number(later[0])} at step 40, {number(later[1])} at 60)")
    surging = sum(run.entropy_growth() >= SURGE for run in slow.values())
    return (
        f"reaches {texts[0]}, LLDS on these seeds {texts[1]}; but its entropy doubles late in "
        f"{NUMBERS[surging]} of {NUMBERS[len(slow)]} seeds, LLDS's in none"
    )


def changes_by_grpo(study: Study) -> pd.DataFrame:
    """Changes of likelihood at the checkpoints of GRPO before a collapse."""
    tables = before_collapse(study.mechanism, [run.run for run in study.arms["grpo"].values()])
    changes = tables["likelihood_change"]
    return changes[changes["method"] == "grpo"]


def wrong_like_right(study: Study) -> str:
    """Share of wrong responses that begin as a right one, first and last checkpoint, in %."""
    data = first_action_data([], changes_by_grpo(study)).sort_values("step")
    shares = data[data["metric"] == "first_search_equal"].groupby("seed")["value"]
    first, last = (100 * ends.mean() for ends in (shares.first(), shares.last()))
    return f"{first:.0f} % of them, then {last:.0f} %"


def updates_so_few(study: Study) -> str:
    arms = [f"grpo-one-epoch-{updates}" for updates in (1, 2, 4)]
    return span((study.mean("best_reward", arm) for arm in arms), 2, " to ")


def verdicts(study: Study) -> str:
    """How the claims of the paper come out, and how many more there are."""
    own = study.claims["paper_reference"].str.contains("not in the paper")
    found = study.claims.loc[~own, "verdict"].value_counts()
    return (
        f"of {found.sum()} of the paper {found['holds']} hold, {found['does not hold']} do not "
        f"hold at this scale, {found['not tested']} could not be tested; {own.sum()} more are ours"
    )


def by_updates(study: Study) -> str:
    counts = [int(study.collapsed(arm).split()[0]) for arm in BY_EPOCHS.values()]
    return f"{listed(BY_EPOCHS, 0)} updates on it {listed(counts, 0)} of 5 collapse"


def few_updates_or_llds(study: Study) -> str:
    few, penalised = (mean(study.last(arm)) for arm in ("grpo-epochs-1", "llds-action"))
    return f"(last reward {number(few)}, LLDS on the same seeds {number(penalised)})"


def final(study: Study, arm: str) -> str:
    return number(study.mean("final_reward", arm))


def rise_and_collapse(study: Study) -> str:
    runs = study.arms["grpo"].values()
    return f"{sum(map(rises_then_collapses, runs))} of {len(runs)}"


def nearly_collapsed(study: Study) -> str:
    """Steps of the long run whose windows are below half of its best, and where it ends up."""
    [run] = study.arms["llds-action-long"].values()
    means = run.means("reward")
    below = run.rows["step"][means < np.nanmax(means) / 2].tolist()
    assert below == [*range(below[0], below[-1] + 1)]
    assert len(below) == 2 * run.window - 1
    return (
        f"from step {below[0]} to {below[-1]}, {NUMBERS[len(below)]} in a row where "
        f"{NUMBERS[len(below) + 1]} are asked for (lowest {fallen(study, 'llds-action-long')} of"
    )


def long_epochs(study: Study) -> str:
    highest = max(run.entropy_growth() for run in study.arms["grpo-long-epochs-1"].values())
    return (
        f"lowest reward after the best {fallen(study, 'grpo-long-epochs-1')} of it, entropy at the "
        f"end below that at the start, in one seed {number(highest, 1)} times as high in between"
    )


def seventh_held_out(study: Study) -> str:
    """By how much LLDS is below GRPO at a seventh of the rate, on held-out questions."""
    scores = study.runs.pivot(index="seed", columns="method", values="last_heldout_em")
    found = student_interval((scores["grpo-lr-seventh"] - scores["llds-action"]).dropna())
    return f"by {interval(found.estimate, found.low, found.high)}"


def earlier_by_bonus(study: Study) -> str:
    row = pd.read_csv(PUBLISHED / "effects.csv", index_col="arm").loc["grpo-entropy-0.01"]
    columns = ("steps_survived", "steps_high", "steps_low")
    steps, low, high = (number(-row[column], 1) for column in columns)
    return f"by {steps} steps [{low}, {high}]"


def share_by_seed(study: Study) -> str:
    """Share of questions that fall at the last checkpoint of each seed, in %."""
    shares = share_table(changes_by_grpo(study)).sort_values("step")
    last = shares.groupby("seed")["share"].last()
    return f"where seeds differ: {span(100 * last, 0, ' to ')} %"


def timed_later(study: Study) -> str:
    """Where the runs that were made to be timed collapse."""
    runs = (run_alone(*run) for run in ((1, 147), (2, 147), (2, 148)))
    return f"at steps {listed((collapse_step(run['reward']) for run in runs), 0)}"


PHRASES: Mapping[str, Callable[[Study], str]] = {
    "table, GRPO": lambda s: (
        f"falls to {fallen(s, 'grpo')} of its best in five of five seeds; by the rule "
        f"{s.collapsed('grpo')} collapse, and {rise_and_collapse(s)} clearly rises"
    ),
    "table, LLDS": lambda s: f"| {s.collapsed('llds-action')} collapse over twice the steps",
    "table, why": by_updates,
    "table, order": lambda s: (
        f"by {leads(s, 'likelihood_lead')} steps where maxima are compared, by "
        f"{leads(s, 'halfway_lead')} where halves are"
    ),
    "table, cures": few_updates_or_llds,
    "table, claims": verdicts,
    "rise": lambda s: (
        f"start policy's {number(s.mean('start_reward', 'grpo'))} the reward rises by "
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
        f"{number(s.mean('start_reward', 'llds-action-long'))} of its start policy "
        f"(held-out {number(s.mean('heldout_em', 'llds-action-long'))} at the best checkpoint, "
        f"{number(s.mean('last_heldout_em', 'llds-action-long'))} at the last)"
    ),
    "updates": lambda s: f"collapses after {span(grpo_updates(s), 0, ' to ')} updates",
    "epochs": lambda s: f"by updates a rollout: {by_epochs(s)}",
    "long epochs": lambda s: (
        f"{s.collapsed('grpo-long-epochs-1')} collapse, last reward "
        f"{span(s.last('grpo-long-epochs-1', 120))}"
    ),
    "as many": lambda s: (
        "LLDS after as many updates on the same seeds "
        f"{span(s.last('llds-action', STEPS, s.arms['grpo-long-epochs-1']))}"
    ),
    "noisy": lambda s: f"end at {listed(s.last('grpo-one-epoch-32'))}",
    "no negative": lambda s: (
        f"{s.collapsed('grpo-no-negative')} collapse, last reward "
        f"{span(s.last('grpo-no-negative'))}, LLDS on these seeds "
        f"{span(s.last('llds-action', STEPS, s.arms['grpo-no-negative']))}"
    ),
    "gates": lambda s: f"by {s.claim('Action gate, then response gate, then token gate on')} exact",
    "gates, reward": lambda s: (
        f"by {s.claim('Action gate, then response gate, then token gate in')} in reward"
    ),
    "weight 1": lambda s: f"at 1 entropy still grows {growth(s, 'llds-weight-1')} times",
    "weight 3": lambda s: f"at 3 {growth(s, 'llds-weight-3', digits=1)} times",
    "seventh": seventh,
    "seventh, difference": lambda s: f"(difference {s.claim(SEVENTH)})",
    "few updates": lambda s: f"reach {updates_so_few(s)} in 30 rollouts",
    "kl": lambda s: f"difference {s.claim(KL)}",
    "kl entropy": lambda s: f"it grows {growth(s, 'grpo-kl-0.1', digits=1)} times, but",
    "half": lambda s: f"and {growth(s, 'grpo-lr-half')} times with half the learning rate",
    "kl 0.01": lambda s: f"but {growth(s, 'grpo-kl-0.01')} times with KL 0.01 and",
    "leads": lambda s: f"leaves its maximum {leads(s, 'likelihood_lead')} steps before",
    "halves": lambda s: f"leads by {leads(s, 'halfway_lead')}",
    "own change": lambda s: f"by {own_change(s)}",
    "map": map_counts,
    "map, ends": map_ends,
    "map, LLDS": map_collapse,
    "trend": lambda s: f"rank correlation {s.claim('More updates on a rollout, by more epochs')}",
    "positive": lambda s: (
        f"(last reward {number(mean(s.last('llds-positive')))}, preserving them on the same seeds "
        f"{number(mean(s.last('llds-action', STEPS, s.arms['llds-positive'])))}"
    ),
    "begin alike": wrong_like_right,
    "terms": lambda s: (
        f"own gradient ({number(s.effect('Of that score, a larger'), plus=True)}); the support by "
        f"other correct ones ({number(s.effect('Of that score, more'), plus=True)}) and the pull "
        f"by incorrect ones, which is what displaces ({number(s.effect('Of that score, a s'))})"
    ),
    "share": lambda s: f"{100 * s.effect('Late in training'):.0f} % at the last checkpoint",
    "llds entropy": llds_entropy,
    "positive, difference": lambda s: f"difference {positive_gain(s)}",
    "rise and collapse": lambda s: f"{rise_and_collapse(s)} both rises by more than twice",
    "nearly": nearly_collapsed,
    "long epochs, lowest": long_epochs,
    "seventh, held-out": seventh_held_out,
    "seventh, entropy": lambda s: f"GRPO's grows {growth(s, 'grpo-lr-seventh', digits=1)} times.",
    "bonus": earlier_by_bonus,
    "share by seed": share_by_seed,
    "timed later": timed_later,
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
