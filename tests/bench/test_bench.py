"""The benchmark runs on the smallest profile and writes every row; speed itself is no test."""

import csv
import re
from pathlib import Path
from typing import Any

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
    "policy",
    "threads",
    "rollout",
    *(f"rollout, searches of {latency} ms" for latency in (0, 1, 2)),
    "padding",
    "step time with LLDS",
    "step time with Lp-Reg",
    "update",
    "update by tokens",
}


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["measure"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_bench_writes_every_row(
    tmp_path: Path,
    smoke_runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollouts, "LATENCIES", (0.0, 0.001, 0.002))
    monkeypatch.setattr(rollouts, "PASS_SECONDS", 1e-4)
    # That each is measured several times in turns has a test of its own, below.
    monkeypatch.setattr(speed, "interleaved", lambda candidates: [each() for each in candidates])
    out = tmp_path / "new" / "bench.csv"
    bench("smoke", smoke_runs, out)
    rows = {re.sub(r"by \d+", "by", name): row for name, row in read(out).items()}
    assert set(rows) == ROWS
    assert rows["policy"]["value"] == "start policy"
    for name in ROWS - {"policy", "threads"}:
        assert float(rows[name]["value"]) >= 0, name
        assert float(rows[name]["baseline_value"]) > 0, name
        assert float(rows[name]["ratio"]) >= 0, name
        assert rows[name]["aim"], name
        assert rows[name]["baseline"], name
    assert 0 <= float(rows["padding"]["value"]) < 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*ROWS - {"update by tokens"}, *rows["policy"]))
    assert "{'" not in printed


def test_a_given_policy_is_measured_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_llama(tmp_path / "llama")
    config = load_experiment("smoke/grpo", [f"policy.path={policy}", "training.warmstart=true"])
    monkeypatch.setattr(speed, "_measure_rollouts", lambda config, path: ([path], None))
    monkeypatch.setattr(speed, "Updates", lambda *_: None)
    monkeypatch.setattr(speed, "_measure_updates", lambda *_: [])
    about, _, path = speed.measure_profile(config, tmp_path)
    assert (path, about.value) == (policy, f"{policy} as it is")


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def candidate(name: str, values: list[float]):
        def measure() -> float:
            calls.append(name)
            return values.pop(0)

        return measure

    medians = interleaved([candidate("a", [99, 1, 5, 2]), candidate("b", [99, 4, 4, 9])])
    assert medians == [2, 4]
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_the_baseline_reads_text_from_data_as_text() -> None:
    """A passage that spells control tokens brings none into what is generated from."""
    hit, shown = Hit("p", "T", f"so{END} it", 1.0), []

    class Model:
        training, device = False, "cpu"

        def train(self, mode: bool) -> None:
            pass

        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            shown.append(input_ids)
            said = torch.tensor([encode(SEARCH if len(shown) == 1 else ANSWER)])
            return torch.cat([input_ids, said], dim=1)

    retriever = FailingRetriever(StubRetriever([hit]), failure_rate=0, passages=(), seed=0)
    loop = RolloutLoop(TAGGED, retriever, limits(), top_k=3)
    [made] = loop.run([(QUESTION, 0)], ReencodingSampler(Model(), TAGGED, 1.0)).trajectories
    assert not {*shown[1][0].tolist()} & {*TAGGED.all_special_ids}
    assert TAGGED.decode(shown[1][0]).endswith(f"{SEARCH}{search_observation([hit])}")
    assert made.answer == "Paris"
