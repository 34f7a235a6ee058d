"""The explorer: every token as text with its author, nothing in it can act, nothing is fetched."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import drawn, needs_browser
from run_helpers import mistake, refused

from llds_core.__main__ import main
from llds_core.errors import DataError
from llds_core.reporting import explorer as module
from llds_core.reporting.explorer import explorer, load_rollouts, save_explorer, store_rollouts
from llds_core.reporting.store import load_run
from llds_core.runs import read_trajectories
from llds_core.worlds.text import visible

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(smoke_runs):
    return [load_run(smoke_runs / "smoke" / arm / "seed0") for arm in ("grpo", "llds-action")]


def stored_beside(run, folder):
    return folder / f"{run.arm}-seed{run.seed}.rollouts.jsonl.gz"


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_tokens_of_one_character_stand_together():
    bytes_of = dict(enumerate("é 🦊b".encode()))

    def decode(ids):
        return bytes(bytes_of[i] for i in ids).decode(errors="replace")

    pieces = module._pieces
    assert list(pieces([*bytes_of], decode)) == ["", "é", " ", "", "", "", "🦊", "b"]
    # Broken ends are shown as such, once, and what follows them is whole.
    assert "".join(pieces([0, 2, 7, 3], decode)) == "\ufffd b\ufffd"
    assert len(list(pieces([3, 3, 3, 3, 3, 7], decode))) == 6


def test_falls_are_tokens_that_fell_in_an_action_that_fell():
    mask = [1, 1, 1, 0, 1, 1, 0, 1]
    changes = [-0.5, 0.2, -0.1, 0.0, -0.1, 0.3, 0.0, -0.2]
    assert module._falls(mask, changes) == "10100001"


def test_rollouts_are_the_first_group_of_each_step_with_the_text_the_policy_saw(runs):
    stored = read_trajectories(runs[0].path)
    found = module.readable_rollouts(runs[0].path)
    assert {one["step"] for one in found} == {row["step"] for row in stored}
    first = [row for row in stored if row["step"] == 1]
    first = [row for row in first if row["question_id"] == first[0]["question_id"]]
    asked = [one["question"] for one in found if one["step"] == 1]
    assert asked == [row["question"] for row in first]
    for one, row in zip(found, first, strict=False):
        for name in ("tokens", "mask", "logprobs", "changes", "fell"):
            assert len(one[name]) == len(row["completion_ids"]), name
        own = "".join(t for t, m in zip(one["tokens"], one["mask"], strict=True) if m == "1")
        assert own == visible("".join(action["text"] for action in row["actions"]))


def test_published_rollouts_give_the_same_page(runs, tmp_path):
    whole = explorer(runs)
    published = [replace(run, path=tmp_path) for run in runs]
    for run in runs:
        store_rollouts(load_rollouts(run), stored_beside(run, tmp_path))
    assert explorer(published) == whole
    arms = page_data(whole)
    assert [arm["label"] for arm in arms] == ["GRPO", "GRPO + LLDS (action gate)"]
    assert arms[0]["steps"] == runs[0].metrics["step"].tolist()
    stored_beside(runs[0], tmp_path).write_bytes(b"no gzip")
    refused(DataError, r"is damaged .*: restore it", explorer, published)
    none = [replace(run, path=tmp_path / "none") for run in runs]
    refused(DataError, "no trajectories are stored: train with", explorer, none)


def hostile(runs, tmp_path):
    run, rollouts = replace(runs[0], path=tmp_path), load_rollouts(runs[0])
    for one in rollouts:
        one |= {"question": EVIL, "accepted": [EVIL], "outcome": EVIL}
        one["tokens"] = [EVIL, *one["tokens"][1:]]
    store_rollouts(rollouts, stored_beside(run, tmp_path))
    return run


def test_what_a_policy_wrote_is_data_and_nothing_is_fetched(runs, tmp_path):
    page = explorer([hostile(runs, tmp_path)])
    assert page.count("</script>") == 2 and EVIL not in page
    assert page_data(page)[0]["rollouts"]["1"][0]["question"] == EVIL
    assert "innerHTML" not in page
    page = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)


@needs_browser
def test_a_browser_draws_both_runs_and_runs_nothing_of_theirs(runs, tmp_path):
    page = save_explorer(runs, tmp_path, "both")
    body = drawn(page)
    assert body.count("<polyline") == 2 and body.count("<article>") >= 2
    assert body.count("GRPO + LLDS (action gate)</text>") == 1
    evil = drawn(save_explorer([hostile(runs, tmp_path)], tmp_path, "evil"))
    assert "<title>hacked" not in evil and "<img" not in evil and "&lt;img src=x" in evil


@needs_browser
def test_the_slider_moves_both_panes(runs, tmp_path):
    page = save_explorer(runs, tmp_path, "both")
    arms = page_data(page.read_text("utf-8"))
    shown = set()
    for place in (0, 1):
        body = drawn(page, f"slider.value = {place}; slider.dispatchEvent(new Event('input'));")
        assert f'<b id="now">{place + 1} of' in body
        for arm in arms:
            said = f"reward {arm['reward'][place]:.2f}, entropy {arm['entropy'][place]:.2f} nats"
            assert said in body
        shown.add(re.search(r'<div id="question">(.*?)</div>', body)[1])
    assert len(shown) == 2


def test_demo_shows_a_published_seed_of_both_main_arms(capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["demo"]) == 0
    page = Path(capsys.readouterr().out.strip().removeprefix("open "))
    assert opened == [page.as_uri()]
    grpo, llds = page_data(page.read_text("utf-8"))
    assert (grpo["label"], grpo["seed"]) == ("GRPO", llds["seed"])
    pairs = zip(grpo["rollouts"]["1"], llds["rollouts"]["1"], strict=True)
    assert all(a["question"] == b["question"] and len(a["changes"]) for a, b in pairs)
    said = mistake(capsys, "demo", "desk-reuse", "--no-open")
    assert "no trajectories are published of study desk-reuse" in said and len(opened) == 1
