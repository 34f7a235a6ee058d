"""Service and client together under faults, kills, load and hostile requests, on real sockets."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from client_scripts import Faulty, client_of
from run_helpers import refused
from scripted_rollouts import ANSWER, TAGGED, ScriptedSampler, limits
from services import ENGINE, PASSAGES, PATIENCE, Process, Scripted, post, running

from llds_core.errors import RetrieverError
from llds_core.retrieval import FailingRetriever, RetrieverClient
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.samplers import Generation
from llds_core.worlds.records import Question

QUERIES = [f"word{i % 60} text{i}" for i in range(240)]


@pytest.mark.parametrize(
    ("limits_", "lost"),
    [
        ({"tries": 20, "timeout_seconds": 2.0}, "nothing"),
        ({"tries": 2, "on_failure": "raise"}, None),
        ({"tries": 2, "on_failure": "empty"}, []),
    ],
)
def test_a_faulty_search_is_right_or_ends_as_told(limits_: dict, lost: object) -> None:
    """From 24 clients at once, one query at a time: none is lost with enough tries."""
    shares = {"drop": 0.1, "error": 0.1, "broken": 0.1}
    if lost == "nothing":
        shares |= {"stall": 0.02}

    def work(number: int) -> list[tuple[int, list | None]]:
        client, found = client_of(url, **limits_), []
        for place in range(number, len(QUERIES), 24):
            try:
                found.append((place, client.search([QUERIES[place]], 3)[0]))
            except RetrieverError as error:
                assert "tries" in str(error)
                found.append((place, None))
        return found

    with running() as service:
        faulty = Faulty(service, stall_seconds=3.0, **shares)
        with Scripted(faulty).serve() as url, ThreadPoolExecutor(24) as pool:
            found = [hits for part in pool.map(work, range(24)) for hits in part]
    assert all(faulty.counts[name] for name in shares)
    right = ENGINE.search(QUERIES, 3)
    failed = [hits for place, hits in found if hits != right[place]]
    assert all(hits == lost for hits in failed)
    assert len(found) == len(QUERIES) and len(failed) < len(QUERIES) / 2
    assert bool(failed) == (lost != "nothing")


def rollout(client: RetrieverClient, happens):
    """Four trajectories of two searches; something `happens` between them."""

    class Interrupted(ScriptedSampler):
        def generate(self, rows, budgets) -> list[Generation]:
            if len(self.calls) == 1:
                happens()
            return super().generate(rows, budgets)

    search = "<search>word{}</search>".format
    scripts = [[search(i), search(i + 20), ANSWER] for i in range(4)]
    retriever = FailingRetriever(client, failure_rate=0.0, passages=PASSAGES, seed=0)
    tasks = [(Question(f"q{i}", "where is it", ("Paris",)), 0) for i in range(4)]
    loop = RolloutLoop(TAGGED, retriever, limits(), top_k=2)
    return loop.run(tasks, Interrupted(TAGGED, scripts)).trajectories


def test_a_rollout_survives_the_death_and_restart_of_the_service() -> None:
    with Process() as process:
        client = client_of(process.url, tries=60, backoff_seconds=0.2)
        trajectories = rollout(client, lambda: (process.kill(), process.start()))
    for i, trajectory in enumerate(trajectories):
        assert trajectory.stop_reason == "answer"
        found = [list(action.hits) for action in trajectory.actions[:2]]
        assert found == ENGINE.search([f"word{i}", f"word{i + 20}"], 2)


def test_a_service_that_stays_away_ends_the_rollout_or_is_done_without() -> None:
    with Process() as process:
        client, strict = client_of(process.url, tries=2, on_failure="empty"), client_of(process.url)
        assert strict.identity == client.identity
        trajectories = rollout(client, process.kill)
        refused(RetrieverError, "make retriever", rollout, strict, process.kill)
    for trajectory in trajectories:
        assert trajectory.stop_reason == "answer"
        assert [len(action.hits) for action in trajectory.actions] == [1, 0, 0]


def memory_mib(pid: int, name: str = "VmHWM") -> float:
    """The most memory there ever was, or now (`VmRSS`)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_hostile_requests_leave_the_service_alive_and_small() -> None:
    """Eight MiB of text are 94 MB as a list of strings, and 180 MB as a list of empty lists."""
    block = b"x" * (1 << 20)
    bodies = [
        b'{"queries": [' + b"[]," * 2_700_000 + b"[]]}",
        b'{"queries": [' + b'"ab",' * 1_600_000 + b'"ab"]}',
        b'{"queries": [' + b"{}," * 2_700_000 + b"{}]}",
        b'{"queries": ["' + b'\\"' * 4_100_000 + b'"]}',
        b"[" * 8_000_000,
        b'"' * 8_000_000,
    ]
    with Process() as process:
        url = f"{process.url}/retrieve"
        post(process.url, queries=["word1"])
        before = memory_mib(process.pid, "VmRSS")
        for body in (block * 100, (block for _ in range(100))):  # with and without a length
            refused = requests.post(url, data=body, timeout=PATIENCE)
            assert refused.status_code == 413 and "8 MiB" in refused.json()["error"]
        after_sizes = memory_mib(process.pid)
        for body in bodies:
            assert requests.post(url, data=body, timeout=PATIENCE).status_code == 400
        after_all = memory_mib(process.pid)
        assert post(process.url, queries=["word3"]).json()["result"][0][0]["id"] == "p3"
    assert after_sizes - before < 30 and after_all - before < 100
