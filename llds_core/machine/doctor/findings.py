"""What a check has found."""

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was looked at.
        status: `ok`, `warn` (it will run, but not as intended) or `fail` (it will not run).
        found: what is there.
        fix: what to do; empty when ok.
    """

    check: str
    status: Status
    found: str
    fix: str = ""

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.status:4}  {self.check}: {self.found}" + (
            f" – {self.fix}" if self.fix else ""
        )

    def to_dict(self) -> dict[str, str]:
        """Plain dict with the attributes as keys."""
        return asdict(self)
