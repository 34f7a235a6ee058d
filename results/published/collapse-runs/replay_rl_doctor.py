"""Alarms of rl-doctor on the data set, step by step: `pip install rldoctor==0.2.0`, then

    python replay_rl_doctor.py [run ...] > rl_doctor_alarms.csv

in this folder, with that package and nothing of ours. Each run is replayed through `LiveMonitor`,
which its TRL callback uses, under the keys that TRL logs. Two settings: `default` is its own
(a check every 25 rows, none before the 60th), `eager` checks every row from the 8th, its minimum.
"""

import csv
import gzip
import sys
from pathlib import Path

import rl_doctor
from rl_doctor.live import LiveMonitor

HERE = Path(__file__).parent
KEYS = {
    "reward": "reward",
    "entropy": "entropy",
    "kl": "kl",
    "clip_fraction": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "loss": "loss",
    "response_length": "completions/mean_length",
    "zero_variance_groups": "frac_reward_zero_std",
}
SETTINGS = {"default": {}, "eager": {"check_every": 1, "min_steps": 8}}


def alarms(rows, settings):
    """First step of each (detector, severity) that the monitor announces."""
    found = {}
    monitor = LiveMonitor(on_finding=lambda finding: None, **settings)
    for row in rows:
        logged = {KEYS[key]: float(row[key]) for key in KEYS if row.get(key)}
        for finding in monitor.log(logged, step=int(row["step"])):
            severity = finding.severity.name.lower()
            found.setdefault((finding.detector, severity), int(row["step"]))
            if severity == "critical":  # announced as such, it is a warning too
                found.setdefault((finding.detector, "warning"), int(row["step"]))
    return found


def main(chosen):
    """Print one row per run, setting, detector and severity."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["tool", "run", "name", "severity", "step"])
    for run in csv.DictReader((HERE / "index.csv").open(encoding="utf-8")):
        if chosen and run["run"] not in chosen:
            continue
        name = run["run"].removeprefix(run["recipe"] + "/")
        series = HERE.parent / run["recipe"] / "runs" / f"{name}.csv.gz"
        with gzip.open(series, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for setting, values in SETTINGS.items():
            tool = f"rl-doctor {rl_doctor.__version__} {setting}"
            writer.writerow([tool, run["run"], "", "", ""])  # that it was replayed
            for (detector, severity), step in sorted(alarms(rows, values).items()):
                writer.writerow([tool, run["run"], detector, severity, step])


if __name__ == "__main__":
    main(sys.argv[1:])
