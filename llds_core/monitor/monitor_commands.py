"""Commands that read training logs; `llds_core.__main__` offers them."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from llds_core.errors import ConfigError, DataError

Log = Annotated[Path, Argument(help="a training log, or the folder of a run")]
Format = Annotated[
    str,
    Option(help="jsonl, state, console, csv, tensorboard or rollouts, where it is guessed wrong"),
]
Updates = Annotated[
    int | None, Option(help="optimizer steps per rollout, where the log lacks them", min=1)
]
Floor = Annotated[
    float | None, Option(help="reward of the worst response, where it is not 0, as -1 of ±1")
]
RewardKey = Annotated[
    str | None, Option(help="key to judge as the reward, as rewards/em/mean of several rewards")
]
Checkpoints = Annotated[
    Path | None, Option(help="folder of the checkpoints, if not beside the log")
]


def diagnose(
    path: Log,
    format: Format = "auto",
    json_: Annotated[bool, Option("--json", help="print JSON")] = False,
    html: Annotated[Path | None, Option(help="write a page with the curves")] = None,
    fail_on: Annotated[
        Literal["critical", "warning", "info"] | None, Option(help="exit with 1 at such an alarm")
    ] = None,
    updates_per_rollout: Updates = None,
    reward_floor: Floor = None,
    reward_key: RewardKey = None,
    checkpoints: Checkpoints = None,
) -> int:
    """Say where a run stands and what warns of a collapse, from anybody's log."""
    from llds_core.files import disk_errors, write_text
    from llds_core.monitor.diagnosis import judge
    from llds_core.monitor.training_log import read_log

    with disk_errors(html or path):
        if html and (html.is_dir() or html.resolve() == path.resolve()):
            what = "a folder" if html.is_dir() else "the log itself"
            raise ConfigError(f"--html {html} is {what}: name another file")
    log = read_log(
        path,
        format=format,
        updates_per_rollout=updates_per_rollout,
        reward_floor=reward_floor,
        reward_key=reward_key,
        checkpoints=checkpoints,
    )
    diagnosis = judge(log)
    if html:
        from llds_core.monitor.diagnosis_page import page

        write_text(html, page(diagnosis, log))
    print(json.dumps(diagnosis.to_dict(), indent=1) if json_ else diagnosis.text())
    if fail_on is None or diagnosis.reaches(fail_on):
        return int(fail_on is not None)
    if diagnosis.phase == "unknown":
        raise DataError(f"--fail-on {fail_on}: the run cannot be judged: {diagnosis.missing[0]}")
    return 0


def watch(
    path: Log,
    format: Format = "auto",
    every: Annotated[float, Option(help="seconds between looks", min=0.1)] = 5.0,
    updates_per_rollout: Updates = None,
    reward_floor: Floor = None,
    reward_key: RewardKey = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Follow a log that grows: curves, phase, alarms, newest trajectory; Ctrl-C ends it.

    Where the output is no terminal, each look is a line and each new alarm is printed once.
    """
    from rich.live import Live

    from llds_core.monitor.diagnosis import follow
    from llds_core.monitor.live import look

    looks = follow(
        path,
        every=every,
        format=format,
        updates_per_rollout=updates_per_rollout,
        reward_floor=reward_floor,
        reward_key=reward_key,
        checkpoints=checkpoints,
    )
    if sys.stdout.isatty():
        with Live(auto_refresh=False) as screen:
            for log, found in looks:
                screen.update(look(log, found, path), refresh=True)
        return
    told: set[str] = set()
    for _, found in looks:
        print(f"{time.strftime('%X')} step {found.last_step}, {found.phase}", flush=True)
        for alarm in found.alarms:
            if alarm.name not in told:
                told.add(alarm.name)
                print(f"  {alarm.title}")
                print(f"    {alarm.evidence}", *(f"    - {a}" for a in alarm.advice), sep="\n")
