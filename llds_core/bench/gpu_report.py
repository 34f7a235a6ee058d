"""Rows of `gpu-check`: what was measured, what it is held against, and the file they go to."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llds_core.files import write_text
from llds_core.machine.plan import UNCERTAINTY

Status = Literal["ok", "outside", "fail", "info"]


@dataclass(frozen=True)
class Row:
    """One measurement; `planned` is a bound, or what `plan` says.

    `status` is `fail` for a number beyond its bound, `outside` for one beyond `plan`'s, `info` for
    one that is held against nothing.
    """

    phase: str
    name: str
    measured: float | str
    planned: float | str | None
    unit: str
    status: Status


class Report:
    """Rows in `gpu_check.json` and, as a table, in `gpu_check.md` under `out`, written after each:
    those of `phase` anew, behind those of other phases.
    """

    def __init__(self, out: Path, phase: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path, self._phase = out / "gpu_check.json", phase
        stored = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else []
        self.rows = [Row(**row) for row in stored if row["phase"] != phase]

    def add(
        self,
        name: str,
        measured: float | str,
        unit: str = "",
        planned: float | str | None = None,
        status: Status = "info",
    ) -> None:
        """Keep and print one row."""
        self.rows.append(Row(self._phase, name, measured, planned, unit, status))
        rows = [asdict(row) for row in self.rows]
        write_text(self._path, json.dumps(rows, indent=1) + "\n")
        write_text(self._path.with_suffix(".md"), markdown(self.rows))
        against = "" if planned is None else f" (planned {_shown(planned)})"
        print(f"{self._phase} {status:7} {name}: {_shown(measured)} {unit}{against}", flush=True)

    def bound(
        self, name: str, measured: float, limit: float, unit: str = "", beyond: Status = "fail"
    ) -> None:
        """Add a number whose status is `beyond` where it exceeds `limit`; NaN does."""
        self.add(name, measured, unit, limit, "ok" if measured <= limit else beyond)

    def plan(self, name: str, measured: float, planned: float, unit: str) -> None:
        """Add a number beside what `plan` says, whose bounds lie a factor away."""
        inside = planned / UNCERTAINTY <= measured <= planned * UNCERTAINTY
        self.add(name, measured, unit, planned, "ok" if inside else "outside")


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = ["| phase | what | measured | planned | unit | status |", "|---|---|---|---|---|---|"]
    for row in rows:
        planned = "" if row.planned is None else _shown(row.planned)
        cells = (row.phase, row.name, _shown(row.measured), planned, row.unit, row.status)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
