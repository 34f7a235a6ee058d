"""Which layouts a run fits on, and the settings of a run on GPUs that no layout names."""

from collections.abc import Iterable
from pathlib import Path

from llds_core.config import ExperimentConfig, layouts, load_experiment
from llds_core.errors import ConfigError
from llds_core.machine.plan import Plan, plan
from llds_core.runs import DEFAULT_ROOT


def fitting_layouts(
    experiment: str,
    overrides: Iterable[str] = (),
    *,
    nodes: int | None = None,
    gpus: int | None = None,
    gpu_memory_gib: float | None = None,
    run_root: Path = DEFAULT_ROOT,
) -> dict[str, Plan]:
    """Plans of the layouts that `experiment` fits on, the smallest first.

    Args:
        experiment: `<profile>/<method>`.
        overrides: dotted.
        nodes: leave out layouts with more nodes.
        gpus: leave out layouts with more GPUs a node.
        gpu_memory_gib: leave out layouts of larger GPUs.
        run_root: stored runs, for their measured times.

    Raises:
        ConfigError: for an unknown experiment or override.
    """
    overrides = list(overrides)
    load_experiment(experiment, overrides)  # its own mistakes are not those of a layout
    found = []
    for name, config in _laid_out(experiment, overrides).items():
        hardware = config.hardware
        limits = (
            (nodes, hardware.nodes),
            (gpus, hardware.processes),
            (gpu_memory_gib, hardware.gpu_memory_gib),
        )
        if any(here is not None and here < needed for here, needed in limits):
            continue
        if (planned := plan(config, run_root)).fits:
            found.append((_total_gib(config), name, planned))
    return {name: planned for _, name, planned in sorted(found, key=lambda entry: entry[:2])}


def nearest_fitting(config: ExperimentConfig, overrides: Iterable[str] = ()) -> str | None:
    """The layout `config` would fit on whose GPU memory in all is nearest; None when none does."""
    overrides = list(overrides)
    totals = {
        name: _total_gib(laid_out)
        for name, laid_out in _laid_out(config.name, overrides).items()
        if plan(laid_out).fits
    }
    wanted = _total_gib(config)
    return min(totals, key=lambda name: abs(totals[name] - wanted), default=None)


def on_gpus(
    experiment: str,
    overrides: Iterable[str] = (),
    *,
    gpus: int,
    gpu_memory_gib: float,
    nodes: int = 1,
) -> ExperimentConfig:
    """Build `experiment` for `nodes` machines of `gpus` GPUs each.

    A layout for such machines is taken; where there is none, the model is sharded over the GPUs and
    the micro-batch is the largest that fits. The optimizer stays what it is.

    Raises:
        ConfigError: for an unknown experiment or override, or GPUs that the mini-batch cannot be
            divided among.
    """
    if gpus < 1 or nodes < 1:
        raise ConfigError(f"{nodes} nodes of {gpus} GPUs: give numbers of at least 1")
    overrides = list(overrides)
    machines = [
        f"hardware.nodes={nodes}",
        f"hardware.processes={gpus}",
        f"hardware.gpu_memory_gib={gpu_memory_gib}",
    ]
    plain = load_experiment(experiment, overrides)
    suited = [
        (config.hardware.gpu_memory_gib, name)
        for name, config in _laid_out(experiment, overrides).items()
        if (config.hardware.nodes, config.hardware.processes) == (nodes, gpus)
        and config.hardware.gpu_memory_gib <= gpu_memory_gib
    ]
    if suited:
        return load_experiment(experiment, [*overrides, *machines], layout=max(suited)[1])
    share, rest = divmod(plain.mini_batch_size, nodes * gpus)
    if rest:
        raise ConfigError(
            f"a mini-batch of {plain.mini_batch_size} trajectories does not divide among "
            f"{nodes * gpus} GPUs: choose a number that divides it"
        )
    settings = [
        *machines,
        f"hardware.sharding={'fsdp2' if nodes * gpus > 1 else 'none'}",
        "training.gradient_checkpointing=true",
    ]
    sizes = [n for n in range(plain.training.micro_batch_size, 0, -1) if share % n == 0]
    for size in sizes or [1]:
        micro_batch = f"training.micro_batch_size={size}"
        config = load_experiment(experiment, [*settings, micro_batch, *overrides])
        if plan(config).fits:
            break
    return config


def _laid_out(experiment: str, overrides: list[str]) -> dict[str, ExperimentConfig]:
    """`experiment` under every layout whose processes its mini-batch divides among."""
    configs = {}
    for name in layouts():
        try:
            configs[name] = load_experiment(experiment, overrides, layout=name)
        except ConfigError:
            continue
    return configs


def _total_gib(config: ExperimentConfig) -> float:
    return config.world_size * (config.hardware.gpu_memory_gib or 0)
