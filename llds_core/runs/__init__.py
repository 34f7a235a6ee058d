"""One folder per run: what it is, what it left behind, and how it is continued.

Policies need torch and transformers and are imported from `llds_core.runs.policies`.
"""

from llds_core.runs.directory import RunDirectory, end_run
from llds_core.runs.identity import check_recorded, deviations
from llds_core.runs.run import (
    DEFAULT_ROOT,
    FINAL,
    Run,
    best_step,
    read_manifest,
    read_metrics,
    read_trajectories,
)
