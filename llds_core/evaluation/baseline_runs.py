"""Baselines of one model over one world: what search agents are compared with before any training.

<folder>/baselines.csv      one row a baseline, mode and benchmark, then the averages
<folder>/baselines.json     model, settings, code, time
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.evaluation.evaluate import Plan, evaluate_benchmarks
from llds_core.evaluation.models import Model, describe
from llds_core.evaluation.suites import ALL, average_members, benchmark_names
from llds_core.files import write_json, write_table
from llds_core.rollout.environment import Environment
from llds_core.runs.provenance import hardware, package_versions

COLUMNS = (
    *("baseline", "benchmark", "n", "em", "em_low", "em_high", "f1", "sub_em"),
    *("valid_answers", "searches", "mode", "em_tagged"),
)
_CODE = ("git_commit", "git_dirty", "git_diff_sha256")


def run_baselines(
    environment: Environment,
    model: Model,
    plan: Plan,
    names: Sequence[str],
    folder: Path,
    *,
    progress: bool = True,
) -> Path:
    """Run baselines one after the other, or continue; write the table.

    Args:
        environment: world and search engine.
        model: what answers.
        plan: what is asked; its agent is replaced by each of `names`.
        names: of `BASELINES`.
        folder: where table and manifest go.
        progress: show progress bars.

    Returns:
        The path of the table.

    Raises:
        ConfigError: for an unknown baseline.
        RunError: when a folder cannot be written or is in use.
    """
    plans = [replace(plan, agent=name) for name in names]
    folders = [evaluate_benchmarks(environment, model, each, progress=progress) for each in plans]
    summaries = [_read(found / "summary.json") for found in folders]
    table = pd.DataFrame(
        [row for summary in summaries for row in score_rows(summary)], columns=COLUMNS
    )
    path = folder / "baselines.csv"
    write_table(path, table)
    config = environment.config
    manifest: dict[str, Any] = describe(model) | {
        "profile": config.profile,
        "world": config.to_dict()["world"],
        "passages": len(environment.world.passages),
        "questions": summaries[0]["questions"],
        "seconds": round(sum(summary["seconds"] for summary in summaries), 1),
        "baselines": {
            summary["agent"]: _about(summary, _read(found / "manifest.json"))
            for summary, found in zip(summaries, folders, strict=True)
        },
        "packages": package_versions(),
        "hardware": hardware(),
    }
    write_json(folder / "baselines.json", manifest)
    return path


def score_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table, of one summary: by mode the benchmarks, then `average_<name>` for each
    average that exists and `average` over all.
    """
    world = summary["world"]
    rows = []
    for mode, scores in summary["modes"].items():
        asked = scores["benchmarks"]
        entries = {name: asked[name] for name in benchmark_names(world) if name in asked}
        for name, members in average_members(world).items():
            if (entry := scores["averages"][name]) is not None:
                label = "average" if name == ALL else f"average_{name}"
                entries[label] = entry | {"n": sum(asked[member]["n"] for member in members)}
        rows += [
            {"baseline": summary["agent"], "benchmark": name, "mode": mode} | entry
            for name, entry in entries.items()
        ]
    return rows


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _about(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of one baseline: its settings, time, and the code that answered."""
    return {
        "settings": summary["identity"],
        "answers": summary["answers"],
        "seconds": summary["seconds"],
    } | {key: manifest[key] for key in _CODE}
