"""Tables in Markdown, and their numbers."""

from collections.abc import Iterable, Sequence
from math import isnan


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table of `columns` and `rows`, one cell a column."""
    lines = [_line(columns), "|" + "---|" * len(columns)]
    return "\n".join([*lines, *map(_line, rows)]) + "\n"


def bounded(estimate: float, low: float, high: float, form: str) -> str:
    """An estimate with its bounds, if it has any, each in the format `form`."""
    bounds = "" if isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{estimate:{form}}{bounds}"


def span(values: Iterable[float], digits: int) -> str:
    """Smallest and largest value, or the one that both are as printed."""
    found = [*values]
    return "–".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(found), max(found))))


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
