"""The page of a report: whole in one file, what it says computed from runs and tables."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from browser import drawn, needs_browser
from PIL import Image

from llds_core.__main__ import main
from llds_core.config.arms import MAIN_ARMS
from llds_core.diagnostics.two_answers import displacement
from llds_core.reporting.curves import curves_data, curves_figure
from llds_core.reporting.explorer import load_rollouts, save_explorer
from llds_core.reporting.figures import STEP_PANELS, save_figure
from llds_core.reporting.store import read_published
from llds_core.study.verdict import _CAPTIONS, verdict, write_page

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
STUDY = "desk-reuse"
EVIL = "</td><script>alert(1)</script>"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of two figures and a table, and an explorer beside it."""
    figures = tmp_path / "figures"
    figures.mkdir()
    names = ("01_collapse_curves.png", "01_entropy.png", "01_entropy.csv")
    for name in names:
        shutil.copy(PUBLISHED / STUDY / "figures" / name, figures / name)
    artefacts = [{"path": f"figures/{name}", "kind": "figure"} for name in names]
    artefacts.append({"path": "gone.csv", "kind": "data"})
    (tmp_path / "explorer.html").write_text('<p title="x">a page</p>')
    (tmp_path / "index.json").write_text(json.dumps({"profile": STUDY, "artefacts": artefacts}))
    return tmp_path / "index.json"


def main_runs(published: Path, profile: str = STUDY) -> list:
    return [run for run in read_published(profile, published) if run.arm in MAIN_ARMS]


def test_every_published_figure_has_a_caption() -> None:
    names = {path.stem for path in PUBLISHED.glob("*/figures/*.png")}
    assert names and names <= _CAPTIONS.keys()


def test_the_page_is_whole_and_small(index: Path) -> None:
    runs = main_runs(PUBLISHED)
    page = write_page(index, runs, published=PUBLISHED)
    text = page.read_text("utf-8")
    assert page.name == "report.html" and page.stat().st_size < 6_000_000
    assert verdict(runs) in text and "comes with the project" not in text
    assert text.count('src="data:image/png;base64,') == 2
    assert 'srcdoc="&lt;p title=&#34;x&#34;&gt;a page&lt;/p&gt;"' in text
    # Nothing is fetched; what is linked lies there.
    targets = re.findall(r'(?:href|src)="(?!#|data:)([^"]*)"', text)
    assert targets and all((index.parent / target).exists() for target in targets)
    claims = pd.read_csv(PUBLISHED / STUDY / "claims.csv")
    for name, count in claims["verdict"].value_counts().items():
        assert f"{name} ({count})" in text and text.count(f'<tr data-verdict="{name}">') == count
    assert all(run.name in text for run in runs)
    (value,) = displacement([0.5])
    assert value < 0 and f"{value:+.3f}" in text


@needs_browser
def test_a_browser_draws_the_page_and_its_filter_hides_claims(index: Path) -> None:
    page = write_page(index, main_runs(PUBLISHED), published=PUBLISHED)
    claims = pd.read_csv(PUBLISHED / STUDY / "claims.csv")
    for click in ("", "document.querySelector('input[data-verdict]').click()"):
        body = drawn(page, click)
        hidden = body.count('hidden=""')
        first = re.search(r'checked="" data-verdict="([^"]*)"', body)[1]
        assert hidden == (claims["verdict"] == first).sum() * bool(click)
    assert 'id="arms"' in body and "Runs: " in body


@needs_browser
def test_the_curves_and_the_explorer_move_each_other(tmp_path: Path) -> None:
    runs = [run for run in main_runs(PUBLISHED, "desk") if run.seed == 40]
    data = curves_data(runs, ["reward", "entropy"], glance=True)
    figure = curves_figure(runs, ["reward", "entropy"], glance=True)
    save_figure(figure, data, tmp_path / "figures", "01_at_a_glance", runs)
    save_explorer(runs, tmp_path)
    artefacts = [{"path": "figures/01_at_a_glance.png", "kind": "figure"}]
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"profile": "desk", "artefacts": artefacts}))
    page = write_page(index, runs, published=PUBLISHED)
    script = """
      const say = (name, value) => document.body.setAttribute(name, value);
      const soon = next => setTimeout(next, 100);
      addEventListener("load", () => soon(() => {
        const inside = frame.contentDocument, slider = inside.getElementById("step");
        const line = glance.querySelector("i"), picture = glance.querySelector("img");
        const edge = node => node.getBoundingClientRect().left;
        const along = () => (edge(line) - edge(picture)) / picture.clientWidth;
        const panels = JSON.parse(glance.dataset.panels);
        say("data-opened", along());
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
        soon(() => {
          say("data-first", along());
          const clientX = edge(picture) + picture.clientWidth * (panels[1][1] - 0.002);
          glance.firstElementChild.dispatchEvent(new MouseEvent("click", {bubbles: true, clientX}));
          soon(() => say("data-now", inside.getElementById("now").textContent));
        });
      }));
    """
    said = dict(re.findall(r'data-(opened|first|now)="([^"]*)"', drawn(page, script)))
    picture = Image.open(tmp_path / "figures/01_at_a_glance.png")
    left, right, *_, first, last = json.loads(picture.text[STEP_PANELS])[0]
    collapse = runs[0].collapse_step  # at which the explorer opens
    for name, step in (("opened", collapse), ("first", 1)):
        share = left + (right - left) * (step - first) / (last - first)
        assert float(said[name]) == pytest.approx(share, abs=0.002)
    steps = [one["step"] for run in runs for one in load_rollouts(run)]
    assert said["now"] == f"{max(s for s in steps if s <= last)} of {max(steps)}"


def test_runs_of_ones_own_stand_beside_the_published(index: Path) -> None:
    runs = main_runs(PUBLISHED)
    own = replace(runs[0], path=Path("results/runs/seed30"))
    text = write_page(index, [own], published=PUBLISHED).read_text("utf-8")
    assert f"comes with the project: {verdict(runs[:5])}" in text


def test_without_study_claims_and_explorer_the_rest_remains(index: Path, tmp_path: Path) -> None:
    (index.parent / "explorer.html").unlink()
    runs = main_runs(PUBLISHED)[2:]
    runs[0].manifest["status"] = EVIL
    text = write_page(index, runs, published=tmp_path / "none").read_text("utf-8")
    assert "claim-table" not in text and "<iframe" not in text and EVIL not in text
    assert verdict(runs) in text


def test_the_toy_displaces_what_the_wrong_answer_finds_unlikely() -> None:
    wrong = [0.7, 0.5, 0.3]
    free, held = displacement(wrong), displacement(wrong, weight=5)
    alone = displacement(wrong, answers=(1.0, 0.0))
    assert all(a < 0 < b for a, b in zip(free, alone, strict=True))
    assert all(abs(a) < abs(b) / 10 for a, b in zip(held, free, strict=True))
    # To first order: what surprises the right answer, minus similarity times what surprises both.
    rate, similarity = 1e-4, 0.5
    right, other = [0.1, -0.05, -0.05], [0.7, -0.35, -0.35]
    own, shared = (sum(a * b for a, b in zip(right, x, strict=True)) for x in (right, other))
    (found,) = displacement([0.3], similarity=similarity, rate=rate, updates=1)
    assert found == pytest.approx(rate * (own - similarity * shared), rel=0.01)


def test_the_main_job_repeats_the_first_seed_of_the_study(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "llds_core.study.reproduce.reproduce", lambda profile, seeds, *_, **__: asked.append(seeds)
    )
    for words in (["desk"], ["smoke"], ["desk", "--seeds", "1,2"]):
        assert main(["reproduce", *words]) == 0
    assert [*map(list, asked)] == [[40], [0], [1, 2]]
    assert main(["reproduce", "smoke", "--arms", ""]) == 2 and len(asked) == 3
