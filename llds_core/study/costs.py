"""What the main job costs, and what else this machine could run: said before anything starts."""

from collections.abc import Sequence
from pathlib import Path

from llds_core.config import ExperimentConfig, layouts, load_experiment, profiles
from llds_core.errors import ConfigError
from llds_core.machine.doctor.gpu import REPORTED_SHARE
from llds_core.machine.doctor.probes import Gpus, find_gpus
from llds_core.machine.layouts import fitting_layouts, nearest_fitting
from llds_core.machine.plan import Plan, plan
from llds_core.runs.identity import deviations, flat


def layout_overrides(experiment: str, layout: str | None) -> list[str]:
    """What `layout` changes against the layout of the profile, as overrides, so that every process
    and notebook of a job gets it; nothing for None.

    Raises:
        ConfigError: for an unknown experiment or layout.
    """
    if layout is None:
        return []
    before = flat(load_experiment(experiment).to_dict())
    after = flat(load_experiment(experiment, layout=layout).to_dict())
    return [f"{key}={_text(after[key])}" for key in after if after[key] != before[key]]


def _text(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def say_costs(configs: Sequence[ExperimentConfig], run_root: Path, left: int) -> None:
    """Print what `left` runs of `configs` take.

    Raises:
        ConfigError: when the GPUs that the layout names are too small, with the nearest that fits.
    """
    planned = plan(configs[0], run_root)
    if planned.gpus and not planned.fits:
        nearest = nearest_fitting(configs[0])
        advice = f"LAYOUT={nearest} is the nearest that fits" if nearest else "no layout fits"
        raise ConfigError(f"{planned.reason}: {advice} (of {', '.join(layouts())})")
    print(planned.text())
    low, high = planned.hours_range
    print(
        f"{left} run{'' if left == 1 else 's'} left: {left * planned.hours:,.1f} h "
        f"({left * low:,.1f} to {left * high:,.1f})"
        + (f", {left * planned.gpu_hours:,.0f} GPU-hours" if planned.gpus else "")
        + ", without evaluation",
        flush=True,
    )
    for deviation in sorted({line for config in configs for line in deviations(config)}):
        print(f"deviates from the paper: {deviation}")


def say_what_else(run_root: Path, found: Gpus | None = None) -> None:
    """Print which GPU profiles this machine could run, and at what cost; nothing without a GPU."""
    found = found or find_gpus()
    if not found.gpus:
        return
    names = ", ".join(sorted({gpu.name for gpu in found.gpus}))
    print(f"\nthis machine has {len(found.gpus)} × {names}; beside desk it could run")
    for profile in profiles():
        if load_experiment(f"{profile}/grpo").hardware.gpu_memory_gib is None:
            continue
        print(f"   {profile:20} {_cheapest(profile, found, run_root)}")


def _cheapest(profile: str, found: Gpus, run_root: Path) -> str:
    smallest = min(gpu.total for gpu in found.gpus)
    fitting: dict[str, Plan] = fitting_layouts(
        f"{profile}/grpo",
        nodes=1,
        gpus=len(found.gpus),
        gpu_memory_gib=smallest / REPORTED_SHARE,
        run_root=run_root,
    )
    if not fitting:
        return "no: its smallest layout does not fit here"
    layout, planned = next(reversed(fitting.items()))
    low, high = planned.hours_range
    line = (
        f"make reproduce PROFILE={profile} LAYOUT={layout}: a run takes {planned.hours:,.0f} h "
        f"({low:,.0f} to {high:,.0f}, {planned.throughput['kind']}), "
        f"{planned.gpu_hours:,.0f} GPU-hours, {planned.disk_gib:,.0f} GiB of disk"
    )
    return "; ".join([line, *planned.deviations])
