"""The page that says what a study found, and the table of the README, from published results.

Sentences stand in `presets/reports/<study>.md`, a Jinja template, and every number in them is asked
for there: from the tables that are published, or from a run as `run_view` sees it. The block of the
README is `<study>-status.md`. The same published results give the same page.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from llds_core.config.arms import Study
from llds_core.errors import DataError
from llds_core.files import bounded
from llds_core.reporting.run_tables import outcomes, usual_steps
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import censored_median, mcnemar, student_interval
from llds_core.reporting.store import read_published, read_published_run
from llds_core.study.claims import load_claims
from llds_core.study.evidence import Evidence, published_mechanism
from llds_core.study.mechanism_rule import Mechanism
from llds_core.study.tables import map_cells

_REPORTS = files("llds_core") / "presets" / "reports"
_BLOCK = re.compile(r"(<!-- status:begin -->\n).*?(<!-- status:end -->)", re.DOTALL)
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def has_report(study: Study) -> bool:
    """Whether there is a page about a study."""
    return (_REPORTS / f"{study.name}.md").is_file()


def render_report(published: Path, study: Study) -> str:
    """The text of `REPORT.md` of a study, from its published results."""
    return _render(f"{study.name}.md", published, study)


def update_readme(readme: Path, published: Path, study: Study) -> str:
    """The text of `readme` with the block between its two status markers made anew, if the study
    has one.
    """
    text, template = readme.read_text("utf-8"), f"{study.name}-status.md"
    if not (_REPORTS / template).is_file():
        return text
    status = _render(template, published, study)
    return _BLOCK.sub(lambda block: block[1] + status + block[2], text)


def _render(template: str, published: Path, plan: Study) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    filters = (number, span, listed, word, mean, percent, censored_median)
    environment.filters.update({one.__name__: one for one in filters})
    environment.globals["bounded"] = bounded
    text = (_REPORTS / template).read_text("utf-8")
    study = PublishedStudy(published, plan)
    try:
        return environment.from_string(text).render(study=study)
    except (jinja2.UndefinedError, LookupError) as error:
        lacks = f"{study.folder} lacks what {template} asks for ({error})"
        raise DataError(f"{lacks}: publish the whole study") from error


class PublishedStudy:
    """What a template asks: published tables, and runs by arm and seed.

    Attributes:
        folder: published results of the profile.
        plan: the study.
        arms: runs of each arm by seed.
    """

    def __init__(self, published: Path, plan: Study) -> None:
        self.folder = published / plan.profile
        self.plan = plan
        self._stored = read_published(plan.profile, published)
        self.arms: dict[str, dict[int, StoredRun]] = {}
        for run in self._stored:
            self.arms.setdefault(run.arm, {})[run.seed] = run

    def table(self, name: str, *, cells: bool = True) -> pd.DataFrame:
        """A published table, with or without the arms that are only cells of the map."""
        table = pd.read_csv(self.folder / f"{name}.csv")
        arms = table["method" if "method" in table else "arm"] if not cells else pd.Series()
        return table if cells else table[~arms.isin(self.plan.only_on_map)]

    def rows(self, name: str, arm: str) -> pd.DataFrame:
        """Rows of a published table that are about an arm."""
        table = self.table(name)
        return table[table["method" if "method" in table else "arm"] == arm]

    def each(
        self, arms: str | Sequence[str], measure: str, *arguments: Any, like: str = ""
    ) -> list[Any]:
        """A measure of `StoredRun` for every run of an arm or several, by seed.

        Args:
            arms: whose runs.
            measure: name of a property or method.
            arguments: of the method.
            like: only seeds that this arm has, too.
        """
        found = []
        for arm in [arms] if isinstance(arms, str) else arms:
            for seed, run in sorted(self.arms[arm].items()):
                if not like or seed in self.arms[like]:
                    value = getattr(run, measure)
                    found.append(value(*arguments) if callable(value) else value)
        return found

    def collapsing(self, *arms: str) -> list[StoredRun]:
        """Runs of some arms that collapse, by arm and seed."""
        found = [run for arm in arms for _, run in sorted(self.arms[arm].items())]
        return [run for run in found if run.collapse is not None]

    def collapses(self, arm: str) -> list[int]:
        """Steps at which runs of an arm collapse."""
        steps = [run.collapse_step for run in self.collapsing(arm)]
        return [step for step in steps if step is not None]

    def collapsed(self, arm: str) -> str:
        """`k of n`: how many seeds of an arm collapse."""
        return f"{len(self.collapses(arm))} of {len(self.arms[arm])}"

    def leads(self, arm: str, column: str) -> list[float]:
        """A lead of `phases.csv` for the runs of an arm that collapse, by seed."""
        rows = self.rows("phases", arm).sort_values("seed")
        return rows.loc[rows["collapse"].notna(), column].tolist()

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
        low, high = sorted(sign * row[name] for name in ("low", "high"))
        return interval(sign * row["effect"], low, high, digits)

    def bounds(self, table: str, arm: str, name: str) -> list[float]:
        """Mean and bounds of a difference in `effects.csv`: `steps` survived or `last_reward`."""
        [row] = self.rows(table, arm).to_dict("records")
        first = "steps_survived" if name == "steps" else name
        return [row[first], row[f"{name}_low"], row[f"{name}_high"]]

    def mean(self, column: str, arm: str) -> float:
        """Mean of a column of `runs.csv` over the seeds of an arm."""
        return float(self.rows("runs", arm)[column].mean())

    def verdicts(self, *, ours: bool) -> pd.Series:
        """How many claims came out how: `holds`, `does not hold`, `not tested`."""
        table = self.table("claims")
        chosen = table["paper_reference"].str.contains("not in the paper") == ours
        found = table.loc[chosen, "verdict"].value_counts()
        return found.reindex(["holds", "does not hold", "not tested"], fill_value=0)

    def mcnemar(self, first: str, second: str) -> float:
        """Two-sided p that two arms collapse equally often."""
        return mcnemar(
            *({s: r.collapse is not None for s, r in self.arms[a].items()} for a in (first, second))
        )

    def difference(self, column: str, first: str, second: str) -> str:
        """Mean difference of a column of `runs.csv` on shared seeds, with its interval."""
        wide = self.table("runs").pivot(index="seed", columns="method", values=column)
        found = student_interval((wide[first] - wide[second]).dropna())
        return interval(found.estimate, found.low, found.high)

    @cached_property
    def on_map(self) -> pd.DataFrame:
        """What became of each cell of the map: `map_cells` with `outcomes`."""
        runs = [run for run in self._stored if run.arm in self.plan.labels]
        found = outcomes(runs, within=usual_steps(runs))
        found = found.drop(columns=["learning_rate", "updates_per_rollout"])
        return map_cells(self.plan).merge(found, on=["method", "seed"], how="left")

    def checkpoints(self, measure: Any, arm: str, *, last: bool) -> list[float]:
        """A share at the first or the last measured checkpoint before the collapse, by seed."""
        tables = published_mechanism(self.folder.parent, self.folder.name)
        evidence = Evidence(self._stored, tables)
        rule = Mechanism(mechanism=measure, arm=arm)
        shares = rule.by_checkpoint(evidence).groupby(level="seed")
        return (shares.last() if last else shares.first()).tolist()

    def cell(self, panel: str, updates: int, rate: float) -> pd.Series:
        """The run of one cell of the map."""
        found = self.on_map.set_index(["panel", "updates_per_rollout", "learning_rate"])
        return found.loc[(panel, updates, rate)]

    def steps_below_half(self, arm: str) -> list[int]:
        """Steps at which the windowed reward of a single run is below half of its best."""
        [run] = self.arms[arm].values()
        means = run.means("reward")
        return run.rows["step"][means < np.nanmax(means) / 2].tolist()

    @property
    def alone(self) -> list[StoredRun]:
        """Runs that were made to be timed, by name."""
        manifests = sorted((self.folder / "alone").glob("*.json"))
        return [read_published_run(manifest) for manifest in manifests]

    @property
    def history(self) -> Sequence[Any]:
        """How the claims changed: `date` and `change`."""
        return load_claims(self.plan).history


def number(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """As printed: with the typographic minus, and no negative zero."""
    text = f"{value:{'+' if plus else ''}.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def interval(estimate: float, low: float, high: float, digits: int = 2) -> str:
    """`estimate [low, high]`."""
    return f"{number(estimate, digits)} [{number(low, digits)}, {number(high, digits)}]"


def span(values: Iterable[float], digits: int = 2, to: str = " to ") -> str:
    """Smallest and largest value, or the one that both are as printed."""
    found = sorted(values)
    return to.join(dict.fromkeys(number(value, digits) for value in (found[0], found[-1])))


def listed(values: Iterable[float], digits: int = 2) -> str:
    """`a, b and c`, in the order given."""
    *rest, last = [number(value, digits) for value in values]
    return f"{', '.join(rest)} and {last}" if rest else last


def mean(values: Iterable[float]) -> float:
    """Mean of all values."""
    return float(np.mean([*values]))


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f} %"


def word(count: int) -> str:
    """A small number in words."""
    return _WORDS[count] if count < len(_WORDS) else str(count)
