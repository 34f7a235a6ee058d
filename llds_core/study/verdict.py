"""What a set of runs shows, in a sentence and on one page."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from llds_core.diagnostics.phases import collapse_step
from llds_core.files import write_text
from llds_core.reporting.figures import method_label
from llds_core.reporting.store import StoredRun


def verdict(runs: Sequence[StoredRun]) -> str:
    """Per method, in how many of its runs the reward collapsed by the rule, and at which steps."""
    by_method: dict[str, list[StoredRun]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    return "; ".join(_of_method(method, found) for method, found in by_method.items()) + "."


def _of_method(method: str, runs: Sequence[StoredRun]) -> str:
    name = method_label(method)
    steps = [collapse_step(run.metrics.set_index("step")["reward"], run.window) for run in runs]
    collapsed = [int(step) for step in steps if step is not None]
    length = max(int(run.metrics["step"].max()) for run in runs)
    if len(runs) == 1:
        if collapsed:
            return f"{name} collapsed at step {collapsed[0]}"
        return f"{name} did not collapse in {length} steps"
    at = f" (at steps {', '.join(map(str, collapsed))})" if collapsed else ""
    return f"{name} collapsed in {len(collapsed)} of {len(runs)} seeds{at} of {length} steps"


def write_page(index: Path, found: str) -> Path:
    """Write `index.html` beside an `index.json`: the verdict, every figure, links to the rest.

    Returns:
        The path of the page.
    """
    content = json.loads(index.read_text("utf-8"))
    artefacts = sorted(content["artefacts"], key=lambda artefact: artefact["path"])
    figures = [
        f'<figure><img src="{html.escape(a["path"])}" style="max-width:100%" alt="">'
        f"<figcaption>{html.escape(a['path'])}</figcaption></figure>"
        for a in artefacts
        if a["path"].endswith(".png")
    ]
    links = [
        f'<li><a href="{html.escape(a["path"])}">{html.escape(a["path"])}</a> ({a["kind"]})</li>'
        for a in artefacts
        if a["kind"] in ("page", "data")
    ]
    runs = [
        f"<li>{html.escape(run['path'])} ({html.escape(run['status'])})</li>"
        for run in content["runs"]
    ]
    title = html.escape(content["profile"])
    page = f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>llds_core: {title}</title>
<body style="font-family:sans-serif;margin:2em auto;max-width:60em">
<h1>{title}</h1><p><b>{html.escape(found)}</b></p>
{"".join(figures)}
<h2>Pages and tables</h2><ul>{"".join(links)}</ul>
<h2>Runs</h2><ul>{"".join(runs)}</ul>
</body></html>
"""
    path = index.with_suffix(".html")
    write_text(path, page)
    return path
