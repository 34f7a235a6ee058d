"""What a set of runs shows, in a sentence and on one self-contained page."""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from PIL import Image

from llds_core.files import bounded, project_path, write_text
from llds_core.reporting.figures import STEP_PANELS, method_label
from llds_core.reporting.run_tables import run_row
from llds_core.reporting.run_view import StoredRun, by_method
from llds_core.reporting.store import PUBLISHED, published_beside

_TEMPLATE = files("llds_core.reporting") / "templates" / "report.html"
_CAPTIONS = yaml.safe_load((files("llds_core") / "presets/captions.yaml").read_text("utf-8"))


def verdict(runs: Sequence[StoredRun]) -> str:
    """Per method, in how many of its runs the reward collapsed by the rule and at which steps, and
    the best and last windowed reward, averaged over runs; empty without runs.
    """
    said = [_of_method(arm, found) for arm, found in by_method(runs).items()]
    return "; ".join(said) + "." * bool(said)


def _of_method(arm: str, runs: Sequence[StoredRun]) -> str:
    name = method_label(arm)
    steps = [run.collapse_step for run in runs if run.collapse_step is not None]
    length = max(int(run.rows["step"].max()) for run in runs)
    best, last = (
        np.mean([getattr(run, end)("reward") for run in runs]) for end in ("best", "last")
    )
    reward = f", reward {best:.2f} at best and {last:.2f} at the end"
    if len(runs) == 1:
        fate = f"collapsed at step {steps[0]}" if steps else f"did not collapse in {length} steps"
        return f"{name} {fate}{reward}"
    at = f" (at steps {', '.join(map(str, steps))})" if steps else ""
    return f"{name} collapsed in {len(steps)} of {len(runs)} seeds{at} of {length} steps{reward}"


def write_page(
    index: Path,
    runs: Sequence[StoredRun],
    *,
    published: Path = PUBLISHED,
    folder: Path | None = None,
) -> Path:
    """Write `report.html` into `folder`, or beside the `index.json` that lists what was drawn, and
    return its path: the verdict on `runs`, figures, the explorer, the claims of the study of the
    profile that is `published` and its arms, runs, and links to files that lie there.
    """
    content = json.loads(index.read_text("utf-8"))
    profile, root = content["profile"], project_path(published)
    path = (folder or index.parent) / "report.html"
    artefacts = sorted(content["artefacts"], key=lambda entry: entry["path"])
    figures = [index.parent / e["path"] for e in artefacts if e["path"].endswith(".png")]
    explorer = index.with_name("explorer.html")
    template = jinja2.Template(_TEMPLATE.read_text("utf-8"), autoescape=True, trim_blocks=True)
    page = template.render(
        profile=profile,
        verdict=verdict(runs),
        published=verdict(published_beside(runs)),
        explorer=explorer.read_text("utf-8") if explorer.exists() else "",
        toy=_toy(),
        figures=[_figure(figure) for figure in figures],
        **_claims(_records(root / profile / "claims.csv")),
        arms=_records(root / profile / "effects.csv"),
        bounded=bounded,
        runs=[_run_row(run) for run in runs],
        files=[entry for entry in artefacts if (path.parent / entry["path"]).exists()],
    )
    write_text(path, page)
    return path


def small_png(picture: bytes) -> str:
    """A figure with a palette, in base64: curves and text have few colours, and it is a third of
    the size.
    """
    with Image.open(io.BytesIO(picture)) as image, io.BytesIO() as small:
        image.convert("RGB").quantize(128).save(small, "png", optimize=True)
        return base64.b64encode(small.getvalue()).decode()


def _figure(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        panels = picture.info.get(STEP_PANELS, "[]")
    image = "data:image/png;base64," + small_png(path.read_bytes())
    caption = _CAPTIONS.get(path.stem, path.stem)
    return {"name": path.stem, "caption": caption, "image": image, "panels": panels}


def _records(table: Path) -> list[dict[Any, Any]]:
    return pd.read_csv(table).to_dict("records") if table.exists() else []


def _claims(claims: list[dict[Any, Any]]) -> dict[str, Any]:
    for claim in claims:
        known = pd.notna(claim["effect"])
        interval = bounded(claim["effect"], claim["low"], claim["high"], ".3g")
        claim["shown"] = f"{interval} {claim['effect_unit']}" if known else "–"
    return {"claims": claims, "counts": Counter(claim["verdict"] for claim in claims)}


def _run_row(run: StoredRun) -> dict[str, Any]:
    hardware = run.manifest.get("hardware") or {}
    cards = ", ".join(map(str, hardware.get("gpus", ())))
    return run_row(run) | {
        "name": run.name,
        "collapse": "none" if run.collapse_step is None else run.collapse_step,
        "code": (run.manifest.get("git_commit") or "unknown")[:12],
        "machine": cards or f"{hardware.get('cores', '?')} cores",
    }


def _toy() -> dict[str, Any]:
    # Imported here: it brings torch.
    from llds_core.diagnostics.two_answers import displacement

    right, weights, wrong = 0.9, (0.2, 1, 5), (0.9, 0.7, 0.5, 0.3, 0.1)
    columns = [
        wrong,
        displacement(wrong, right=right, answers=(1.0, 0.0)),
        displacement(wrong, right=right),
        *(displacement(wrong, right=right, weight=weight) for weight in weights),
    ]
    return {"right": right, "weights": weights, "rows": list(zip(*columns, strict=True))}
