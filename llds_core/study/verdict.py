"""What a set of runs shows, in a sentence and on one page."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

from llds_core.files import write_text
from llds_core.reporting.figures import method_label
from llds_core.reporting.run_tables import by_method
from llds_core.reporting.run_view import StoredRun

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>llds_core: {{ profile }}</title>
<body style="font-family:sans-serif;margin:2em auto;max-width:60em">
<h1>{{ profile }}</h1><p><b>{{ verdict }}</b></p>
{% for path in artefacts | map(attribute="path") | sort if path.endswith(".png") %}
<figure><img src="{{ path }}" style="max-width:100%" alt=""><figcaption>{{ path }}</figcaption>
</figure>
{% endfor %}
<h2>Pages and tables</h2><ul>
{% for file in artefacts | sort(attribute="path") if file.kind in ("page", "data") %}
<li><a href="{{ file.path }}">{{ file.path }}</a> ({{ file.kind }})</li>
{% endfor %}
</ul><h2>Runs</h2><ul>
{% for run in runs %}
<li>{{ run.path }} ({{ run.status }})</li>
{% endfor %}
</ul></body></html>
"""


def verdict(runs: Sequence[StoredRun]) -> str:
    """Per method, in how many of its runs the reward collapsed by the rule, and at which steps."""
    return "; ".join(_of_method(arm, found) for arm, found in by_method(runs).items()) + "."


def _of_method(arm: str, runs: Sequence[StoredRun]) -> str:
    name = method_label(arm)
    steps = [run.collapse_step for run in runs if run.collapse_step is not None]
    length = max(int(run.rows["step"].max()) for run in runs)
    if len(runs) == 1:
        if steps:
            return f"{name} collapsed at step {steps[0]}"
        return f"{name} did not collapse in {length} steps"
    at = f" (at steps {', '.join(map(str, steps))})" if steps else ""
    return f"{name} collapsed in {len(steps)} of {len(runs)} seeds{at} of {length} steps"


def write_page(index: Path, found: str) -> Path:
    """Write `index.html` beside an `index.json`: the verdict, every figure, links to the rest.

    Returns:
        The path of the page.
    """
    template = jinja2.Template(_PAGE, autoescape=True, trim_blocks=True)
    content = json.loads(index.read_text("utf-8"))
    path = index.with_suffix(".html")
    write_text(path, template.render(content, verdict=found))
    return path
