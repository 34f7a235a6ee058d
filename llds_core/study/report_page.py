"""The page that says what a study found, and the table of the README, from published results.

Sentences stand in `presets/reports/<study>.md`, a Jinja template, and every number in them is asked
for there: from the tables that are published, or from a run as `run_view` sees it. The block of the
README is `<study>-status.md`; tables that studies share are macros of `tables.md`. The same
published results give the same page.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import pandas as pd

from llds_core.config.arms import Study
from llds_core.config.load import PRESETS
from llds_core.errors import DataError
from llds_core.files import bounded, number, span
from llds_core.reporting.run_tables import outcomes
from llds_core.reporting.run_view import StoredRun, by_method, usual_steps
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import read_published, read_published_run
from llds_core.study.claim_statistics import censored_median, mcnemar
from llds_core.study.claims import load_claims
from llds_core.study.evidence import Evidence, correlations, published_mechanism
from llds_core.study.rules import MEASURED_SEEDS, Effect, Finding
from llds_core.study.tables import map_cells

_REPORTS = PRESETS / "reports"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def render_report(published: Path, study: Study) -> str:
    """The text of `REPORT.md` of a study, from its published results; empty if it has no page."""
    return _render(f"{study.name}.md", published, study)


def update_readme(readme: Path, published: Path, study: Study) -> str:
    """The text of `readme`, the block between the study's markers made anew if it has one."""
    text, status = readme.read_text("utf-8"), _render(f"{study.name}-status.md", published, study)
    block = rf"(<!-- {study.name}:begin -->\n).*?(<!-- {study.name}:end -->)"
    made_anew = re.sub(block, lambda old: old[1] + status + old[2], text, flags=re.DOTALL)
    return made_anew if status else text


def _render(template: str, published: Path, plan: Study) -> str:
    if not (_REPORTS / template).is_file():
        return ""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (_REPORTS / name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, span, listed, word, percent, censored_median)
    environment.filters |= {one.__name__: one for one in filters} | {"mean": fmean}
    environment.globals |= {"bounded": bounded, "mcnemar": mcnemar}
    study = PublishedStudy(published, plan)
    try:
        return environment.get_template(template).render(study=study, claims=load_claims(plan))
    except (jinja2.UndefinedError, LookupError) as error:
        lacks = f"{study.folder} lacks what {template} asks for ({error})"
        raise DataError(f"{lacks}: publish the whole study") from error


class PublishedStudy:
    """What a template asks: published tables, and runs by arm and seed (`arms`) of the study."""

    def __init__(self, published: Path, plan: Study) -> None:
        self.folder = published / plan.profile
        self.plan = plan
        self._stored = read_published(plan.profile, published)
        by_arm = by_method(self._stored)
        self.arms = {arm: {run.seed: run for run in runs} for arm, runs in by_arm.items()}

    def table(self, name: str, *, cells: bool = True) -> pd.DataFrame:
        """A published table, with or without the arms that are only cells of the map."""
        table = pd.read_csv(self.folder / f"{name}.csv")
        return table if cells else table[~_arms_of(table).isin(self.plan.only_on_map)]

    def rows(self, name: str, arm: str) -> pd.DataFrame:
        """Rows of a published table that are about an arm."""
        table = self.table(name)
        return table[_arms_of(table) == arm]

    def each(self, arm: str, measure: str, *arguments: Any, like: str = "") -> list[Any]:
        """A property of `StoredRun`, or a method called with the arguments, for every run of an
        arm, by seed; only of seeds that the arm `like` has, too.
        """
        runs = [run for seed, run in self.arms[arm].items() if seed in self.arms[like or arm]]
        found = [getattr(run, measure) for run in runs]
        return [value(*arguments) if callable(value) else value for value in found]

    def runs_of(self, *names: str) -> tuple[int, int]:
        """How many runs of some arms or groups, or of all, are published, and are planned."""
        arms = self.plan.chosen(names)
        made = [set(arm.seeds) & set(self.arms.get(arm.name, ())) for arm in arms]
        return sum(map(len, made)), sum(len(arm.seeds) for arm in arms)

    def collapsing(self, *arms: str) -> list[StoredRun]:
        """Runs of some arms that collapse, by arm and seed."""
        found = [run for arm in arms for run in self.arms[arm].values()]
        return [run for run in found if run.collapse is not None]

    def collapses(self, arm: str) -> list[int | None]:
        """Steps at which runs of an arm collapse."""
        return [run.collapse_step for run in self.collapsing(arm)]

    def collapsed(self, *arms: str, within: int | None = None) -> str:
        """`k of n`: how many runs of some arms collapse, within so many steps if given."""
        runs = [run.first(within) for arm in arms for run in self.arms[arm].values()]
        return f"{sum(run.collapse is not None for run in runs)} of {len(runs)}"

    def halved(self, arm: str, within: int | None = None) -> int:
        """On how many seeds of an arm the reward was below half of its best at some point."""
        return sum(run.first(within).lowest_after_best() < 0.5 for run in self.arms[arm].values())

    def claim(self, start: str) -> Any:
        """The row of `claims.csv` whose claim begins like this."""
        table = self.table("claims")
        found = table[table["claim"].str.startswith(start)]
        if len(found) != 1:
            raise DataError(f'{len(found)} claims begin with "{start}": name one of claims.csv')
        return found.iloc[0]

    def effect(self, start: str, digits: int = 2, sign: int = 1) -> str:
        """`effect [low, high]` of a claim, or of its contrary with `sign` -1."""
        row = self.claim(start)
        low, effect, high = sorted(sign * row[name] for name in ("low", "effect", "high"))
        return interval(low, effect, high, digits)

    def verdicts(self, *, ours: bool) -> pd.Series:
        """How many claims came out how: `holds`, `contradicted`, `not shown` (those that do not
        hold otherwise), `not tested`.
        """
        table = self.table("claims")
        chosen = table["paper_reference"].str.contains("not in the paper") == ours
        known = table["verdict"].mask(table["contradicted"], "contradicted")
        found = known[chosen].replace("does not hold", "not shown").value_counts()
        return found.reindex(["holds", "contradicted", "not shown", "not tested"], fill_value=0)

    def difference(self, column: str, first: str, second: str) -> str:
        """Mean difference of a column of `runs.csv` on shared seeds, with its interval."""
        wide = self.table("runs").pivot(index="seed", columns="method", values=column)
        found = student_interval((wide[first] - wide[second]).dropna())
        return interval(found.low, found.estimate, found.high)

    @cached_property
    def on_map(self) -> pd.DataFrame:
        """What became of each cell of the map."""
        runs = [run for run in self._stored if run.arm in self.plan.labels]
        return map_cells(self.plan, outcomes(runs, within=usual_steps(runs)))

    def cell(self, panel: str, updates: int, rate: float) -> pd.Series:
        """The run of one cell of the map."""
        found = self.on_map.set_index(["panel", "updates_per_rollout", "learning_rate"])
        return found.loc[(panel, updates, rate)]

    def correlation(self, rule: Effect, optimizer: str) -> Finding:
        """What a rule on a correlation finds with steps of an optimizer."""
        found = correlations(rule.effect, self.evidence, rule.arm, rule.factor, optimizer)
        return rule.judge(found.to_dict(), [rule.arm], MEASURED_SEEDS)

    @cached_property
    def evidence(self) -> Evidence:
        """What the claims are checked against."""
        tables = published_mechanism(self.folder.parent, self.folder.name)
        return Evidence(self._stored, tables)

    @property
    def alone(self) -> list[StoredRun]:
        """Runs that were made to be timed, by name."""
        manifests = sorted((self.folder / "alone").glob("*.json"))
        return [read_published_run(manifest) for manifest in manifests]


def _arms_of(table: pd.DataFrame) -> pd.Series:
    return table["method" if "method" in table else "arm"]


def interval(low: float, estimate: float, high: float, digits: int = 2) -> str:
    """`estimate [low, high]`."""
    return f"{number(estimate, digits)} [{number(low, digits)}, {number(high, digits)}]"


def listed(values: Iterable[float], digits: int = 2) -> str:
    """`a, b and c`, in the order given."""
    *rest, last = [number(value, digits) for value in values]
    return f"{', '.join(rest)} and {last}" if rest else last


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f} %"


def word(count: int) -> str:
    """A small number in words."""
    return _WORDS[count] if count < len(_WORDS) else str(count)
