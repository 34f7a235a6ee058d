"""Reads anybody's training log; only `CollapseMonitor` loads a framework."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llds_core.monitor.collapse_monitor import CollapseMonitor as CollapseMonitor


def __getattr__(name: str) -> Any:
    if name == "CollapseMonitor":
        from llds_core.monitor.collapse_monitor import CollapseMonitor

        return CollapseMonitor
    raise AttributeError(name)
