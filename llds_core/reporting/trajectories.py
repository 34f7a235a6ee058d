"""A trajectory for human eyes: who wrote what, in order, as HTML or for a terminal.

What the policy wrote, what the search engine returned and the answer differ in colour. All of it is
data: in HTML everything is escaped, for a terminal control characters are shown, not sent.
Observations are rebuilt from the hits; the policy may have seen a shorter one, cut at
`rollout.max_observation_tokens`.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from llds_core.config import ExperimentConfig
from llds_core.files import write_table, write_text
from llds_core.reporting.figures import method_label
from llds_core.reporting.store import StoredRun
from llds_core.retrieval.base import Hit
from llds_core.rollout.protocol import ANSWER, FEEDBACK, Action, Trajectory, search_observation
from llds_core.runs import Run as PlannedRun
from llds_core.worlds.records import Question

BlockKind = Literal["question", "policy", "observation", "answer"]
_NAMES: dict[BlockKind, str] = {
    "question": "question",
    "policy": "written by the policy",
    "observation": "observation: inserted, not trained on",
    "answer": "answer",
}
_COLOURS: dict[BlockKind, tuple[str, str]] = {  # background, border: readable on white and black
    "question": ("#F2F2F2", "#8A8A8A"),
    "policy": ("#DCEBF7", "#0072B2"),
    "observation": ("#FBEBD0", "#E69F00"),
    "answer": ("#D5EFE5", "#009E73"),
}
_ANSI: dict[BlockKind, str] = {
    "question": "\033[1m",
    "policy": "\033[34m",
    "observation": "\033[33m",
    "answer": "\033[1;32m",
}
_RESET = "\033[0m"


@dataclass(frozen=True)
class Block:
    """A stretch of text with one author."""

    kind: BlockKind
    text: str


def blocks(trajectory: Trajectory | Mapping[str, Any]) -> list[Block]:
    """Split a trajectory, or its stored record, into question, policy, observation and answer."""
    question, actions, stop_reason = _parts(trajectory)
    result = [Block("question", question)]
    for i, action in enumerate(actions):
        before, tag, after = action.text.rpartition(f"<{ANSWER}>")
        if action.kind == "answer" and tag:
            result += [Block("policy", before)] if before.strip() else []
            result.append(Block("answer", tag + after))
        else:
            result.append(Block("policy", action.text))
        # The last action gets an observation only when that is what filled the context.
        if action.kind != "answer" and (i + 1 < len(actions) or stop_reason == "length"):
            text = search_observation(action.hits) if action.executed else FEEDBACK
            note = "(injected failure: unrelated passages)\n" if action.retrieval_failed else ""
            result.append(Block("observation", note + text.strip()))
    return result


def to_html(trajectory: Trajectory | Mapping[str, Any]) -> str:
    """Return a self-contained HTML fragment with a legend and the outcome."""
    parts = blocks(trajectory)
    shown = dict.fromkeys(block.kind for block in parts)
    legend = " ".join(
        f'<span style="{_style(kind)};padding:1px 6px">{html.escape(_NAMES[kind])}</span>'
        for kind in shown
    )
    body = "".join(
        f'<div style="{_style(block.kind)};padding:6px 10px;margin:4px 0;white-space:pre-wrap;'
        f'overflow-wrap:anywhere;font-family:monospace">{_escape(block.text)}</div>'
        for block in parts
    )
    return (
        '<div style="max-width:60em;font-size:13px">'
        f'<p style="margin:4px 0">{legend}</p>{body}'
        f'<p style="margin:4px 0">{html.escape(outcome(trajectory))}</p></div>'
    )


def to_ansi(trajectory: Trajectory | Mapping[str, Any], color: bool = True) -> str:
    """Return lines for a terminal, coloured when `color`; each block names its author."""
    lines = []
    for block in blocks(trajectory):
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in block.text)
        start, end = (_ANSI[block.kind], _RESET) if color else ("", "")
        lines.append(f"{start}[{_NAMES[block.kind]}]\n{text.strip()}{end}")
    return "\n\n".join([*lines, outcome(trajectory)])


def outcome(trajectory: Trajectory | Mapping[str, Any]) -> str:
    """One line: how it ended and, where the accepted answers are known, whether it was right."""
    record = _record(trajectory)
    ends = {"answer": "answered", "turns": "out of turns", "length": "out of room"}
    line = f"{ends.get(record['stop_reason'], 'unfinished')}, {record['searches']} searches"
    accepted = [answer for answer in record["golden_answers"] if answer != "?"]
    if accepted:
        verdict = "correct" if record["correct"] else "not correct"
        line += f", {verdict} (accepted: {', '.join(accepted)}), reward {record['reward']:g}"
    return line


def save_trajectories(
    shown: Sequence[tuple[StoredRun, str, Trajectory | Mapping[str, Any]]], out_dir: Path, name: str
) -> list[Path]:
    """Write `name`.html and, with one row a block, `name`.csv under `out_dir`.

    Args:
        shown: run, title and trajectory, in the order of the page.
        out_dir: folder, made when missing.
        name: file name without suffix.

    Returns:
        The two paths.

    Raises:
        RunError: when the folder cannot be written.
    """
    rows = [
        {
            "profile": run.profile,
            "method": run.method,
            "seed": run.seed,
            "title": title,
            "block": number,
            "kind": block.kind,
            "text": block.text,
        }
        for run, title, trajectory in shown
        for number, block in enumerate(blocks(trajectory))
    ]
    sections = "\n".join(
        f"<h2>{html.escape(title)}</h2>\n<!-- {html.escape(run.name)} {run.fingerprint} -->\n"
        f"{to_html(trajectory)}"
        for run, title, trajectory in shown
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title>\n'
    page += f'<body style="font-family:sans-serif;margin:2em">\n{sections}\n</body></html>\n'
    paths = [out_dir / f"{name}.html", out_dir / f"{name}.csv"]
    write_text(paths[0], page)
    write_table(paths[1], pd.DataFrame(rows), float_format=None)
    return paths


def answer_with(
    runs: Sequence[StoredRun], question: Question, run_root: Path, overrides: Sequence[str] = ()
) -> list[tuple[StoredRun, str, Trajectory]]:
    """Let the start policy, then the best checkpoint of every run, answer `question` greedily.

    Returns:
        Run, title and scored trajectory, as `save_trajectories` takes them.

    Raises:
        CheckpointError: when a run has no checkpoint, or it cannot be read.
    """
    # Imported here: they bring torch, which showing a stored trajectory does without.
    from llds_core.evaluation import run_questions
    from llds_core.rollout.environment import build_environment
    from llds_core.runs.policies import load_policy

    shown = []
    for run, which in [(run, "start") for run in runs[:1]] + [(run, "best") for run in runs]:
        config = ExperimentConfig.from_dict(run.manifest["config"])
        made = PlannedRun(config, run.seed, Path(run_root), tuple(overrides))
        folder = made.checkpoint(which)
        model, tokenizer = load_policy(folder, config.training.dtype)
        environment = build_environment(config)
        [trajectory] = run_questions(environment, model, tokenizer, [question], temperature=0.0)
        title = f"{method_label(run.method)}, seed {run.seed}, {folder.name.replace('-', ' ')}"
        shown.append((run, "before training" if which == "start" else title, trajectory))
    return shown


def _parts(trajectory: Trajectory | Mapping[str, Any]) -> tuple[str, list[Action], str | None]:
    if isinstance(trajectory, Trajectory):
        return trajectory.question.question, trajectory.actions, trajectory.stop_reason
    actions = []
    for stored in trajectory["actions"]:
        # Records leave out scores: they are no part of what the policy saw.
        hits = tuple(Hit(**{"score": 0.0, **hit}) for hit in stored["hits"])
        actions.append(Action(**{**stored, "hits": hits}))
    return trajectory["question"], actions, trajectory["stop_reason"]


def _record(trajectory: Trajectory | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(trajectory, Trajectory):
        return {
            "stop_reason": trajectory.stop_reason,
            "searches": trajectory.searches,
            "golden_answers": trajectory.question.golden_answers,
            "correct": trajectory.correct,
            "reward": trajectory.reward,
        }
    searches = sum(action["executed"] for action in trajectory["actions"])
    return {**trajectory, "searches": searches}


def _style(kind: BlockKind) -> str:
    background, border = _COLOURS[kind]
    return f"background:{background};border-left:4px solid {border};color:#111"


def _escape(text: str) -> str:
    # Control characters are not allowed in HTML, whatever a policy may write.
    visible = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return html.escape(visible.strip("\n"))
