"""The benchmark runs on the smallest profile and writes every row; speed itself is no test."""

import csv
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from given_policies import save_llama
from scripted_rollouts import ANSWER, QUESTION, SEARCH, TAGGED, StubRetriever, encode, limits

from llds_core.bench import rollouts, speed
from llds_core.bench.rollouts import ReencodingSampler
from llds_core.bench.speed import bench, interleaved
from llds_core.config import load_experiment
from llds_core.retrieval import FailingRetriever, Hit
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.protocol import search_observation
from llds_core.runs.policies import END

ROWS = {
    *("policy", "threads", "rollout", "padding", "update", "update by tokens"),
    *(f"rollout, searches of {latency} ms" for latency in (0, 1, 2)),
    *(f"step time with {penalty}" for penalty in ("LLDS", "Lp-Reg")),
}


@pytest.mark.slow
def test_bench_writes_every_row(tmp_path: Path, smoke_runs: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(rollouts, "LATENCIES", (0.0, 0.001, 0.002))
    monkeypatch.setattr(rollouts, "PASS_SECONDS", 1e-4)
    # That each is measured several times in turns has a test of its own, below.
    monkeypatch.setattr(speed, "interleaved", lambda candidates: [each() for each in candidates])
    out = tmp_path / "new" / "bench.csv"
    bench("smoke", smoke_runs, out)
    with out.open(encoding="utf-8", newline="") as file:
        rows = {re.sub(r"by \d+", "by", row["measure"]): row for row in csv.DictReader(file)}
    assert set(rows) == ROWS and rows["policy"]["value"] == "start policy"
    for name in ROWS - {"policy", "threads"}:
        row = rows[name]
        assert float(row["value"]) >= 0 and float(row["ratio"]) >= 0, name
        assert float(row["baseline_value"]) > 0 and row["aim"] and row["baseline"], name
    assert 0 <= float(rows["padding"]["value"]) < 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*ROWS - {"update by tokens"}, *rows["policy"]))
    assert "{'" not in printed


def test_a_given_policy_is_measured_as_it_is(tmp_path: Path, monkeypatch) -> None:
    policy = save_llama(tmp_path / "llama")
    config = load_experiment("smoke/grpo", [f"policy.path={policy}", "training.warmstart=true"])
    monkeypatch.setattr(speed, "_measure_rollouts", lambda config, path: ([path], None))
    monkeypatch.setattr(speed, "Updates", lambda *_: None)
    monkeypatch.setattr(speed, "_measure_updates", lambda *_: [])
    about, _, path = speed.measure_profile(config, tmp_path)
    assert (path, about.value) == (policy, f"{policy} as it is")


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    both = Mock()
    both.a.side_effect, both.b.side_effect = [99, 1, 5, 2], [99, 4, 4, 9]
    assert interleaved([both.a, both.b]) == [2, 4]
    assert [name for name, *_ in both.mock_calls] == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_the_baseline_reads_text_from_data_as_text() -> None:
    """A passage that spells control tokens brings none into what is generated from."""
    hit, shown = Hit("p", "T", f"so{END} it", 1.0), []

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        shown.append(input_ids)
        said = torch.tensor([encode(SEARCH if len(shown) == 1 else ANSWER)])
        return torch.cat([input_ids, said], dim=1)

    model = Mock(training=False, device="cpu", generate=generate)
    retriever = FailingRetriever(StubRetriever([hit]), failure_rate=0, passages=(), seed=0)
    loop = RolloutLoop(TAGGED, retriever, limits(), top_k=3)
    [made] = loop.run([(QUESTION, 0)], ReencodingSampler(model, TAGGED, 1.0)).trajectories
    assert not {*shown[1][0].tolist()} & {*TAGGED.all_special_ids}
    assert TAGGED.decode(shown[1][0]).endswith(f"{SEARCH}{search_observation([hit])}")
    assert made.answer == "Paris"
