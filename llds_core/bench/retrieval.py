"""Speed, recall and memory of dense search, beside BM25 and plain FAISS on the same passages.

Two corpora: the passages of the whole atlas, encoded by a real encoder; and a larger one made of
them. A made vector is w·x + (1 - w)·y + 0.25·g, scaled to length 1, where x and y are the vectors
of two passages drawn at random, w is uniform in [0, 1] and g a Gaussian vector of expected squared
length 1. Made vectors show how cost and recall grow with size; they are no real passages. Queries
are real questions of the atlas in both.

Recall is that of the 3 nearest by exact search. `gold` is the share of questions whose first
passage is among the 3 found. All engines of a corpus answer the same batches in turns, so that a
busy machine slows all of them.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llds_core.bench.engines import (
    Engine,
    K,
    made_vectors,
    text_engines,
    vector_engines,
)
from llds_core.bench.speed import interleaved
from llds_core.config import DenseConfig
from llds_core.files import cell, write_cells, write_json
from llds_core.retrieval.encoder import PACKAGED, Encoder
from llds_core.retrieval.faiss_files import import_faiss
from llds_core.retrieval.files import building
from llds_core.retrieval.vectors import StoredVectors, encode_corpus
from llds_core.runs.provenance import git_state, hardware, package_versions
from llds_core.seeding import numpy_generator
from llds_core.worlds.atlas import World, build_atlas

BATCHES = (1, 64, 512)
REPETITIONS = 3
COLUMNS = (
    "corpus",
    "passages",
    "engine",
    "recall_at_3",
    "gold_at_3",
    *(f"queries_per_second_{batch}" for batch in BATCHES),
    *(f"times_plain_flat_{batch}" for batch in BATCHES),
    "build_seconds",
    "index_mb",
    "build_peak_mb",
)


def bench_retrieval(
    out: Path,
    cache: Path,
    *,
    size: int = 1_000_000,
    cities: int | None = None,
    queries: int = 512,
    threads: int = 1,
    seconds: float = 0.5,
    settings: DenseConfig | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measure on this machine; write a CSV to `out` with a manifest beside it, and print a table.

    Args:
        out: the CSV file; the manifest has the same name with the suffix `.json`.
        cache: folder of vectors, so that a second run encodes no passage.
        size: vectors of the made corpus.
        cities: cities of the atlas; None for all.
        queries: number of questions, spread over all kinds and splits.
        threads: of FAISS and torch.
        seconds: how long a measurement of speed takes at least; at least one batch is answered.
        settings: encoder and parameters of the indexes; None for MiniLM and the defaults.
        progress: show progress bars.

    Returns:
        The rows of the CSV.

    Raises:
        ConfigError: when a package or the encoder is missing, or a value does not fit.
        RunError: when `out` or `cache` cannot be written, or `cache` holds something else.
    """
    settings = settings or DenseConfig(encoder=PACKAGED, device="cpu")
    faiss, started = import_faiss(), time.perf_counter()
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        world, encoder = build_atlas(cities=cities), Encoder(settings)
        with building(cache / "atlas"):
            manifest = encode_corpus(
                world.passages, encoder, settings, cache / "atlas", progress=progress
            )
        real = StoredVectors(cache / "atlas", manifest)
        texts, gold = _questions(world, queries)
        asked = encoder.encode_queries(texts)
        engines = vector_engines(real, asked, settings, progress)
        engines += text_engines(world, encoder, texts, real, settings)
        rows = _measured("atlas", len(real), engines, len(asked), gold, seconds)
        made = made_vectors(real, manifest, size, cache / f"made-{size}", progress=progress)
        engines = vector_engines(made, asked, settings, progress)
        rows += _measured("made", size, engines, len(asked), None, seconds)
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
    write_cells(out, [COLUMNS, *(row.values() for row in rows)])
    write_json(
        out.with_suffix(".json"),
        {
            "schema_version": 1,
            "csv": out.name,
            "method": " ".join((__doc__ or "").split()),
            "settings": asdict(settings),
            "encoder_hash": encoder.hash,
            "corpus_hash": manifest["corpus_hash"],
            "size": size,
            "cities": cities,
            "queries": len(asked),
            "threads": threads,
            "repetitions": REPETITIONS,
            "seconds": round(time.perf_counter() - started, 1),
            **git_state(),
            "packages": package_versions()
            | {name: version(name) for name in ("sentence-transformers",)}
            | {"faiss": faiss.__version__},
            "hardware": hardware(),
        },
    )
    print(_table(rows))
    return rows


def _questions(world: World, count: int) -> tuple[list[str], np.ndarray]:
    """Questions drawn from all splits, and the index of the passage each of them needs first."""
    questions = [*world.train, *world.dev, *world.test]
    place = {passage.id: index for index, passage in enumerate(world.passages)}
    random = numpy_generator(0, "bench", "questions")
    drawn = random.choice(len(questions), min(count, len(questions)), replace=False)
    chosen = [questions[index] for index in drawn.tolist()]
    gold = [place[question.metadata["steps"][0]["passage_id"]] for question in chosen]
    return [question.question for question in chosen], np.array(gold)


def _measured(
    corpus: str,
    size: int,
    engines: Sequence[Engine],
    queries: int,
    gold: np.ndarray | None,
    seconds: float,
) -> list[dict[str, Any]]:
    exact = engines[0].answer(slice(None))
    speeds = {
        batch: interleaved([_speed(e, batch, queries, seconds) for e in engines], REPETITIONS)
        for batch in BATCHES
    }
    rows = []
    for number, engine in enumerate(engines):
        found = engine.answer(slice(None))
        row: dict[str, Any] = {"corpus": corpus, "passages": size, "engine": engine.name}
        common = [len({*a} & {*b}) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
        row["recall_at_3"] = np.mean(common) / K if engine.ranks else None
        row["gold_at_3"] = None if gold is None else (found == gold[:, None]).any(axis=1).mean()
        for batch in BATCHES:
            row[f"queries_per_second_{batch}"] = speeds[batch][number]
            row[f"times_plain_flat_{batch}"] = speeds[batch][number] / speeds[batch][0]
        row["build_seconds"] = engine.build_seconds
        row["index_mb"] = engine.index_mb
        row["build_peak_mb"] = engine.build_peak_mb
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def _speed(engine: Engine, batch: int, queries: int, enough: float) -> Callable[[], float]:
    """Return a measurement of queries a second in batches of `batch`."""
    parts = [slice(start, start + batch) for start in range(0, max(1, queries - batch + 1), batch)]

    def measure() -> float:
        done, started = 0, time.perf_counter()
        for part in itertools.cycle(parts):
            engine.answer(part)
            done += min(batch, queries)
            if (seconds := time.perf_counter() - started) >= enough:
                break
        return done / seconds

    return measure


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """One line an engine: headings of two corpora would not fit a screen side by side."""
    lines = []
    for row in rows:
        cells = [f"{name}={cell(value)}" for name, value in row.items() if value is not None]
        lines.append("  ".join(cells))
    return "\n".join(lines)
