"""One folder per run: what it is, what it left behind, and how it is continued.

Checkpoints and policies need torch and transformers and are imported from their own modules.
"""

from llds_core.runs.directory import (
    DEFAULT_ROOT,
    FINAL,
    STATUSES,
    RunDirectory,
    has_diverged,
    is_complete,
    read_manifest,
    read_metrics,
    read_trajectories,
    run_path,
)
from llds_core.runs.identity import check_recorded

__all__ = [
    "DEFAULT_ROOT",
    "FINAL",
    "STATUSES",
    "RunDirectory",
    "check_recorded",
    "has_diverged",
    "is_complete",
    "read_manifest",
    "read_metrics",
    "read_trajectories",
    "run_path",
]
