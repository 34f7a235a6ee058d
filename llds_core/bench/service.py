"""The retriever service under load, and its client under faults.

The service runs as users run it, in a process of its own; every answer is compared with that of the
same search engine in this process. Two runs: many clients at once, and the same searches through a
server that fails (`llds_core.bench.faults`), once as told and once never.
"""

import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import requests
from tqdm.auto import tqdm

from llds_core.bench.faults import FAULTS, FaultyFront
from llds_core.config import ExperimentConfig, ServiceConfig, load_experiment
from llds_core.errors import RetrieverError
from llds_core.files import cell, write_cells, write_json
from llds_core.retrieval.base import Hit, Retriever
from llds_core.retrieval.client import RetrieverClient
from llds_core.rollout.environment import build_environment
from llds_core.runs.provenance import git_state, hardware, package_versions

COLUMNS = ("measure", "value", "unit", "aim")
FAULT_THREADS = 8
_PACKAGES = ("fastapi", "requests", "starlette", "urllib3", "uvicorn")


@dataclass
class Tally:
    """What became of searches, each in exactly one of the three."""

    right: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Searches that ended in an error, by its name."""
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    requests: int = 0

    @property
    def ended(self) -> int:
        """Searches accounted for."""
        return self.right + self.wrong + self.failed.total()


def bench_service(
    profile: str,
    out: Path,
    *,
    clients: int = 200,
    requests_in_all: int = 10_000,
    searches: int = 2_000,
    timeout_seconds: float = 0.5,
    progress: bool = True,
) -> None:
    """Measure the service of `profile`; write a CSV to `out`, a manifest beside it, and print it.

    Args:
        profile: world and search engine; BM25 where the profile itself asks a service.
        out: the CSV file.
        clients: clients at once, in the run under load.
        requests_in_all: their requests together.
        searches: searches of the run with faults.
        timeout_seconds: patience of its clients.
        progress: show a progress bar.

    Raises:
        ConfigError: for an unknown profile.
        RetrieverError: when the service does not start.
        RunError: when `out` cannot be written.
    """
    config = load_experiment(f"{profile}/grpo")
    if config.retrieval.backend == "server":
        config = load_experiment(f"{profile}/grpo", ["retrieval.backend=bm25"])
    environment = build_environment(config)
    questions = [question.question for question in environment.world.train]
    engine = environment.retriever
    with (
        tqdm(total=3, desc=f"bench service {profile}", disable=not progress) as bar,
        service_process(config) as (url, process),
    ):
        patient = replace(config.service, url=url, cache_size=0, timeout_seconds=60.0)
        load = run_searches(
            patient, repeated(questions, requests_in_all), engine, config.retrieval.top_k, clients
        )
        bar.update()
        batch, memory = _mean_batch(url), _peak_memory_mib(process.pid)
        hasty = replace(patient, timeout_seconds=timeout_seconds, backoff_seconds=0.02)
        tallies, counts = [], Counter()
        for faults in ({}, FAULTS):
            with FaultyFront(url, stall_seconds=3 * timeout_seconds, faults=faults) as front:
                tallies.append(
                    run_searches(
                        replace(hasty, url=front.url),
                        repeated(questions, searches),
                        engine,
                        config.retrieval.top_k,
                        FAULT_THREADS,
                    )
                )
                counts = front.counts
            bar.update()
    rows = _load_rows(load, clients, batch, memory) + _fault_rows(*tallies, counts)
    _write(rows, out)
    manifest = {
        "profile": profile,
        "config_hash": config.hash(),
        "backend": config.retrieval.backend,
        "passages": len(environment.world.passages),
        "index": engine.identity,
        "clients": clients,
        "searches": searches,
        "faults": dict(FAULTS),
        "timeout_seconds": timeout_seconds,
        "tries": config.service.tries,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **git_state(),
        "packages": package_versions() | {name: version(name) for name in _PACKAGES},
        "hardware": hardware(),
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


@contextmanager
def service_process(config: ExperimentConfig) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `llds_core retriever` on a free port; yield its address and process.

    Raises:
        RetrieverError: when it ends before it is ready.
    """
    backend = config.retrieval.backend
    command = [sys.executable, "-m", "llds_core", "retriever", config.profile, "--backend", backend]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line:
                raise RetrieverError(
                    f'the service ended with code {process.wait()} before it was ready: run "make '
                    f'retriever PROFILE={config.profile}" to see why'
                )
            yield line.split(" at ")[1].split(": ")[0], process
        finally:
            process.terminate()
            process.wait()


def run_searches(
    settings: ServiceConfig,
    queries: Sequence[str],
    engine: Retriever,
    k: int,
    threads: int,
) -> Tally:
    """Search every query, each thread with a client of its own; compare with `engine`."""
    expected = dict(zip(queries, engine.search(queries, k), strict=True))
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for query in queries:
        waiting.put(query)
    tally, lock = Tally(), threading.Lock()
    together = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        client = RetrieverClient(settings, seed=number)
        together.wait()
        while (query := _next(waiting)) is not None:
            started = time.perf_counter()
            ended = _search(client, query, k, expected[query])
            with lock:
                tally.latencies.append(time.perf_counter() - started)
                ended(tally)
        with lock:
            tally.requests += client.requests
        client.close()

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work, number) for number in range(threads)]
        together.wait()
        started = time.perf_counter()
        for future in running:
            future.result()
        tally.seconds = time.perf_counter() - started
    return tally


def repeated(questions: Sequence[str], count: int) -> list[str]:
    """`count` questions, from the beginning again when there are fewer."""
    return [questions[i % len(questions)] for i in range(count)]


def _next(waiting: "queue.SimpleQueue[str]") -> str | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def _search(
    client: RetrieverClient, query: str, k: int, expected: list[Hit]
) -> Callable[[Tally], None]:
    """Search once; return how it is to be counted."""
    try:
        right = client.search([query], k) == [expected]
    except RetrieverError as error:
        name = type(error).__name__
        return lambda tally: tally.failed.update([name])

    def count(tally: Tally) -> None:
        tally.right += right
        tally.wrong += not right

    return count


def _load_rows(
    load: Tally, clients: int, batch: float, memory: float | None
) -> list[tuple[object, ...]]:
    p50, p99 = np.percentile(load.latencies, [50, 99]) * 1000
    return [
        ("load: clients", clients, "at once", ""),
        ("load: searches", load.ended, "", ""),
        ("load: wrong or failed", load.wrong + load.failed.total(), "searches", "0"),
        ("load: rate", load.ended / load.seconds, "searches/s", ""),
        ("load: median", p50, "ms", ""),
        ("load: 99th percentile", p99, "ms", ""),
        ("load: batch", batch, "requests searched together", ""),
        ("load: memory of the service", memory, "MiB at most", ""),
    ]


def _fault_rows(clean: Tally, faulty: Tally, counts: Counter[str]) -> list[tuple[object, ...]]:
    return [
        ("faults: searches", faulty.ended, "", ""),
        ("faults: requests", faulty.requests, "", ""),
        *((f"faults: {name}", counts[name], "requests", "") for name in FAULTS),
        ("faults: right", faulty.right, "searches", ""),
        ("faults: ended in an error", faulty.failed.total(), "searches", ""),
        ("faults: wrong", faulty.wrong, "searches", "0"),
        ("faults: time", faulty.seconds, "s", ""),
        ("faults: time without faults", clean.seconds, "s", ""),
        ("faults: median", statistics.median(faulty.latencies) * 1000, "ms", ""),
        ("faults: slowest", max(faulty.latencies) * 1000, "ms", ""),
    ]


def _mean_batch(url: str) -> float:
    values = dict(
        line.rsplit(" ", 1)
        for line in requests.get(f"{url}/metrics", timeout=10).text.splitlines()
        if line.startswith("retriever_batch_requests_")
    )
    return float(values["retriever_batch_requests_sum"]) / float(
        values["retriever_batch_requests_count"]
    )


def _peak_memory_mib(pid: int) -> float | None:
    """None where the system does not tell."""
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text("utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _write(rows: list[tuple[object, ...]], out: Path) -> None:
    write_cells(out, [COLUMNS, *rows])
    cells = [[cell(value) for value in row] for row in rows]
    width = max(len(name) for name, *_ in cells)
    for name, value, unit, aim in cells:
        print(f"{name:{width}}  {value:>8} {unit}{f' (aim {aim})' if aim else ''}")
