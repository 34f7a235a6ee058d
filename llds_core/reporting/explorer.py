"""The explorer: one self-contained page that shows runs side by side, step by step, token by token.

A run's trajectories are made readable once (`readable_rollouts`): text of every token, who wrote
it, its log-probability and how far the step's updates moved that. Published runs keep the result
beside their metrics as `<arm>-seed<k>.rollouts.jsonl.gz`. In the page all of it is data: it is
never parsed as HTML.
"""

import gzip
import html
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import groupby
from os.path import commonprefix
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import numpy as np

from llds_core.errors import DataError
from llds_core.files import replacing, write_text
from llds_core.reporting.artefacts import record
from llds_core.reporting.figures import method_colours, method_label
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.trajectories import ENDS
from llds_core.runs import read_trajectories
from llds_core.runs.checkpoints import checkpoint_path, checkpoint_steps
from llds_core.worlds.text import visible

_TEMPLATE = files("llds_core.reporting") / "templates" / "explorer.html"
_OWN = "rollouts.jsonl.gz"  # of a run as it was made
Rollout = dict[str, Any]


def readable_rollouts(path: Path) -> list[Rollout]:
    """What the page shows of the run directory `path`: the first group of each step, whole or as
    far as it was stored (`training.trajectories_per_step`).
    """
    from transformers import AutoTokenizer

    folder = path / "checkpoint"
    if not (done := checkpoint_steps(folder)):
        raise DataError(f"{path} has no checkpoint, and so no tokenizer: finish the run first")
    decode: Any = AutoTokenizer.from_pretrained(checkpoint_path(folder, done[-1])).decode
    made = []
    for _, rows in groupby(read_trajectories(path), key=lambda row: row["step"]):
        group = list(rows)
        group = [row for row in group if row["question_id"] == group[0]["question_id"]]
        made += [_readable(row, group, decode) for row in group]
    return made


def _readable(row: Rollout, group: Sequence[Rollout], decode: Callable[..., str]) -> Rollout:
    ids, mask, changes = row["completion_ids"], row["response_mask"], row.get("logprob_changes", [])
    rivals = [other["completion_ids"] for other in group if other["correct"] != row["correct"]]
    preserved = row["reward"] >= fmean(other["reward"] for other in group)
    end = f"no answer, {ENDS.get(row['stop_reason'], 'unfinished')}"
    return {
        "step": row["step"],
        "question": visible(row["question"]),
        "accepted": [visible(answer) for answer in row["golden_answers"]],
        "correct": row["correct"],
        "outcome": end if row["answer"] is None else f"answered {visible(row['answer'])}",
        "tokens": [visible(piece) for piece in _pieces(ids, decode)],
        "mask": "".join(map(str, mask)),
        "logprobs": [round(value, 2) for value in row["sampler_logprobs"]],
        "changes": [round(value, 3) for value in changes],
        "shared": max((len(commonprefix([ids, other])) for other in rivals), default=0),
        "fell": _falls(mask, changes) if preserved and changes else "0" * len(ids),
    }


def _pieces(ids: Sequence[int], decode: Callable[..., str]) -> Iterator[str]:
    """Text of each token; a character of several tokens stands with its last one."""
    start = 0
    for end in range(1, len(ids) + 1):
        before, now = (decode(ids[start:place]) for place in (end - 1, end))
        # Four bytes make a character at most: what is broken after them stays broken.
        if now.endswith("\N{REPLACEMENT CHARACTER}") and end - start < 4 and end < len(ids):
            yield ""
            continue
        yield now[len(before.rstrip("\N{REPLACEMENT CHARACTER}")) :] if end - start > 1 else now
        start = end


def _falls(mask: Sequence[int], changes: Sequence[float]) -> str:
    """1 on tokens that lost likelihood in an action that lost likelihood as a whole."""
    falls = np.zeros(len(mask), dtype=int)
    edges = np.flatnonzero(np.diff([0, *mask, 0]))
    values = np.array(changes)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        falls[start:end] = (values[start:end] < 0) & (values[start:end].sum() < 0)
    return "".join(map(str, falls))


def store_rollouts(rollouts: Iterable[Rollout], file: Path) -> None:
    """Write readable rollouts as JSON lines; the same ones give the same bytes."""
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rollouts)
    with replacing(file) as target:
        target.write(gzip.compress(lines.encode(), mtime=0))


def has_rollouts(run: StoredRun) -> bool:
    """Whether rollouts of a run are kept, without reading them."""
    return _kept(run).exists()


def _kept(run: StoredRun) -> Path:
    """Where the rollouts of a run are, its own or published beside its metrics."""
    own = run.path / _OWN
    return own if own.exists() else run.path / f"{run.arm}-seed{run.seed}.{_OWN}"


def load_rollouts(run: StoredRun) -> list[Rollout]:
    """Readable rollouts of a run, published or as it was made; none where none are kept."""
    file = _kept(run)
    if not file.exists():
        return []
    if file.name == _OWN:
        return readable_rollouts(run.path)
    try:
        return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file} is damaged ({error}): restore it") from error


def explorer(runs: Sequence[StoredRun], *, colour: str = "logprob") -> str:
    """The page of `runs`, which should share seed and profile, as HTML.

    It opens with tokens coloured by `logprob` at the first collapse, or at the end, or by `change`
    at the step whose updates took most likelihood from the right answers of the first run.
    """
    shown = [(run, rollouts) for run in runs if (rollouts := load_rollouts(run))]
    if not shown:
        names = ", ".join(run.name for run in runs)
        advice = "train with training.trajectories_per_step=8"
        raise DataError(f"of {names} no trajectories are stored: {advice}")
    colours = method_colours(run.arm for run, _ in shown)
    arms = [_arm(run, rollouts, colours[run.arm]) for run, rollouts in shown]
    first = next((arm["collapse"] for arm in arms if arm["collapse"]), arms[0]["steps"][-1])
    if colour == "change":
        first = _worst_step(shown[0][1], first)
    # Inside a script nothing may look like its end.
    data = json.dumps(arms, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = jinja2.Template(_TEMPLATE.read_text("utf-8"), autoescape=False)
    return page.render(first_step=first, colour=colour, data=data)


def _worst_step(rollouts: Sequence[Rollout], otherwise: int) -> int:
    """The step, of a mixed group, at which right answers lost most."""
    losses: dict[int, list[float]] = defaultdict(list)
    wrong = {one["step"] for one in rollouts if not one["correct"]}
    for one in rollouts:
        if one["correct"] and one["changes"] and one["step"] in wrong:
            losses[one["step"]].append(sum(one["changes"]))
    return min(losses, key=lambda step: fmean(losses[step]), default=otherwise)


def _arm(run: StoredRun, rollouts: Sequence[Rollout], colour: str) -> dict[str, Any]:
    by_step = defaultdict(list)
    for one in rollouts:
        by_step[one["step"]].append({key: one[key] for key in one if key != "step"})
    rows = run.metrics
    return {
        "label": run.label or method_label(run.arm),
        "seed": run.seed,
        "colour": colour,
        "collapse": run.collapse_step,
        "steps": rows["step"].tolist(),
        "reward": rows["reward"].rolling(run.window, min_periods=1).mean().round(4).tolist(),
        "entropy": rows["entropy"].fillna(0).round(4).tolist(),
        "rollouts": by_step,
    }


def save_explorer(
    runs: Sequence[StoredRun], out_dir: Path, name: str = "explorer", *, colour: str = "logprob"
) -> Path:
    """Write `<name>.html` below `out_dir`, record it, and return its path."""
    path = out_dir / f"{name}.html"
    write_text(path, explorer(runs, colour=colour))
    record([path], runs)
    return path


def framed(page: Path) -> str:
    """HTML that shows `page` inside a notebook, carried along whole."""
    inside = html.escape(page.read_text("utf-8"))
    look = 'style="width:100%;height:900px;border:0"'
    frame = f'<iframe title="{page.stem}" srcdoc="{inside}" {look}></iframe>'
    return f"<div>{frame}</div>"  # IPython warns of a frame that is all
