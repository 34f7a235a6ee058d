"""A trajectory for human eyes: who wrote what, in order, as HTML or for a terminal.

What the policy wrote, what the search engine returned and the answer differ in colour. All of it is
data: in HTML everything is escaped, for a terminal control characters are shown, not sent.
Observations are rebuilt from the hits; the policy may have seen a shorter one, cut at
`rollout.max_observation_tokens`.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from llds_core.reporting.figures import NAMES, method_label
from llds_core.reporting.run_view import StoredRun
from llds_core.rollout.protocol import ANSWER, Trajectory, search_observation
from llds_core.runs import Run
from llds_core.worlds.records import Question
from llds_core.worlds.text import visible

ENDS: dict[str | None, str] = {
    "answer": "answered",
    "turns": "out of turns",
    "length": "out of room",
    "too_long": "the question is too long",
    None: "unfinished",
}
_AUTHORS: dict[str, list[str]] = NAMES["authors"]


def blocks(trajectory: Trajectory) -> list[tuple[str, str]]:
    """Split a trajectory by author: `question`, `policy`, `observation` or `answer`, and a text."""
    actions = trajectory.actions
    result = [("question", trajectory.question.question)]
    for i, action in enumerate(actions):
        before, tag, after = action.text.rpartition(f"<{ANSWER}>")
        if action.kind == "answer" and tag:
            result += [("policy", before)] if before.strip() else []
            result.append(("answer", tag + after))
        else:
            result.append(("policy", action.text))
        # The last action gets an observation only when that is what filled the context.
        if action.kind != "answer" and (i + 1 < len(actions) or trajectory.stop_reason == "length"):
            text = search_observation(action.hits) if action.executed else trajectory.feedback
            note = "(injected failure: unrelated passages)\n" if action.retrieval_failed else ""
            result.append(("observation", note + text.strip()))
    return result


def to_html(trajectory: Trajectory) -> str:
    """Return a self-contained HTML fragment with a legend and the outcome."""
    parts = blocks(trajectory)
    legend = " ".join(
        f'<span style="{_style(kind)};padding:1px 6px">{_AUTHORS[kind][0]}</span>'
        for kind in dict.fromkeys(kind for kind, _ in parts)
    )
    body = "".join(
        f'<div style="{_style(kind)};padding:6px 10px;margin:4px 0;white-space:pre-wrap;'
        'overflow-wrap:anywhere;font-family:monospace">'
        # Control characters are not allowed in HTML, whatever a policy may write.
        + html.escape(visible(text).strip("\n"))
        + "</div>"
        for kind, text in parts
    )
    return (
        f'<div style="max-width:60em;font-size:13px"><p style="margin:4px 0">{legend}</p>{body}'
        f'<p style="margin:4px 0">{html.escape(outcome(trajectory))}</p></div>'
    )


def to_ansi(trajectory: Trajectory, color: bool = True) -> str:
    """Return lines for a terminal, coloured when `color`; each block names its author."""
    lines = []
    for kind, text in blocks(trajectory):
        name, *_, ansi = _AUTHORS[kind]
        start, end = (ansi, "\033[0m") if color else ("", "")
        lines.append(f"{start}[{name}]\n{visible(text).strip()}{end}")
    return "\n\n".join([*lines, outcome(trajectory)])


def outcome(trajectory: Trajectory) -> str:
    """One line: how it ended and, where the accepted answers are known, whether it was right."""
    plural = "es" * (trajectory.searches != 1)
    line = f"{ENDS[trajectory.stop_reason]}, {trajectory.searches} search{plural}"
    accepted = [answer for answer in trajectory.question.golden_answers if answer != "?"]
    if accepted:
        verdict = "correct" if trajectory.correct else "not correct"
        line += (
            f", {verdict} (accepted: {visible(', '.join(accepted))}), reward {trajectory.reward:g}"
        )
    return line


def trajectory_table(shown: Mapping[str, Trajectory]) -> pd.DataFrame:
    """Trajectories by title, one row per block."""
    return pd.DataFrame(
        {"title": title, "block": number, "kind": kind, "text": text}
        for title, trajectory in shown.items()
        for number, (kind, text) in enumerate(blocks(trajectory))
    )


def answer_with(
    runs: Sequence[StoredRun], question: Question, run_root: Path, overrides: Sequence[str] = ()
) -> dict[str, Trajectory]:
    """Let the start policy, then the best checkpoint of every run, answer `question` greedily.
    Returns scored trajectories by title.
    """
    # Imported here: it brings torch, which showing a stored trajectory does without.
    from llds_core.evaluation.held_out import ask_each

    shown = {}
    for run, which in [(run, "start") for run in runs[:1]] + [(run, "best") for run in runs]:
        made = Run.load(f"{run.profile}/{run.method}", run.seed, run_root, overrides)
        [trajectory] = ask_each(made, question, [which])
        step = made.checkpoint(which).name.replace("-", " ")
        title = f"{method_label(run.method)}, seed {run.seed}, {step}"
        shown["before training" if which == "start" else title] = trajectory
    return shown


def _style(kind: str) -> str:
    _, background, border, _ = _AUTHORS[kind]
    return f"background:{background};border-left:4px solid {border};color:#111"
