"""Dense search: the passages whose vectors are nearest to that of a query.

An index is used only for what it was built from: its manifest is compared with the corpus, the
encoder and the settings at hand, and the first difference is named.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llds_core.config import DenseConfig
from llds_core.errors import DataError, RunError
from llds_core.retrieval.base import Hit, check_k
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.faiss_files import read_faiss
from llds_core.retrieval.index import (
    build_index,
    check_index_settings,
    describe_index,
)
from llds_core.retrieval.vector_search import VectorSearch
from llds_core.retrieval.vectors import (
    StoredVectors,
    check_source,
    read_index_manifest,
    vector_source,
)
from llds_core.worlds.records import Passage

if TYPE_CHECKING:
    import faiss


class DenseRetriever:
    """Ranks passages by the inner product of their vectors with that of the query.

    Args:
        passages: the corpus, in memory or a `PassageFile`.
        folder: its index, built by `build_index`.
        settings: the settings it was built with; those of searching may differ.
        encoder: the encoder of `settings`, if it is loaded already.

    Raises:
        ConfigError: when the encoder or a package is missing.
        RunError: when the index is not finished, or was built from another corpus, with another
            encoder or with other parameters.
        DataError: when one of its files is missing or damaged.

    Attributes:
        identity: sixteen hex digits that change with corpus, encoder, index and search settings.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        folder: Path,
        settings: DenseConfig,
        *,
        encoder: Encoder | None = None,
    ) -> None:
        self._passages = passages
        self._encoder = encoder or Encoder(settings)
        check_index_settings(settings, len(passages), self._encoder.dimension)
        source = vector_source(passages, self._encoder, settings)
        manifest = checked_manifest(folder, source, describe_index(settings, len(passages)))
        vectors = StoredVectors(folder, manifest)
        self._vectors = VectorSearch(vectors, settings, _stored_index(folder, manifest))
        self.identity = _identity(source, settings, manifest)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` hits per query, best first; none for a blank query.

        Raises:
            ConfigError: when `k` is not a positive integer.
        """
        check_k(k)
        asked = [place for place, query in enumerate(queries) if query.strip()]
        results: list[list[Hit]] = [[] for _ in queries]
        if asked:
            vectors = self._encoder.encode_queries([queries[place] for place in asked])
            found = self._vectors.search(vectors, k)
            for place, scores, indices in zip(asked, *found, strict=True):
                results[place] = self._hits(scores.tolist(), indices.tolist())
        return results

    def _hits(self, scores: list[float], indices: list[int]) -> list[Hit]:
        return [
            Hit(p.id, p.title, p.text, score)
            for score, index in zip(scores, indices, strict=True)
            if index >= 0
            for p in (self._passages[index],)
        ]


def open_dense(
    passages: Sequence[Passage], settings: DenseConfig, folder: Path, *, progress: bool = True
) -> DenseRetriever:
    """Open the index of `passages`, building it first where none is finished.

    Args:
        passages: the corpus.
        settings: encoder, index and searching; `settings.path` comes before `folder`.
        folder: where the index is, or will be.
        progress: show progress bars while building.

    Raises:
        ConfigError: when a value does not fit, or the encoder or a package is missing.
        RunError: when the folder holds an index of something else or cannot be written.
        DataError: when one of its files is damaged.
    """
    folder = Path(settings.path) if settings.path else folder
    encoder = Encoder(settings)
    manifest = read_index_manifest(folder)
    if manifest is None or not manifest.get("index"):
        # Runs that start together share one build.
        build_index(passages, settings, folder, encoder=encoder, wait=True, progress=progress)
    return DenseRetriever(passages, folder, settings, encoder=encoder)


def checked_manifest(
    folder: Path, source: dict[str, Any], described: dict[str, Any]
) -> dict[str, Any]:
    """Read the manifest of a finished index.

    Args:
        folder: of the index.
        source: what its vectors should be made from; see `vector_source`.
        described: what it should be; see `describe_index`.

    Raises:
        RunError: when there is none, it is not finished, or is of something else.
        DataError: when the manifest is damaged.
    """
    manifest = read_index_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} holds no index: build one there, or name another with dense.path")
    check_source(folder, manifest, source)
    if not manifest.get("index"):
        raise RunError(f"{folder} holds no finished index: build it again, which continues it")
    for key, value in described.items():
        if (found := manifest["index"].get(key)) != value:
            raise RunError(
                f"{folder} was built with dense.{key}={found}, now {value}: set it back, or build "
                "the index again (the vectors are kept)"
            )
    return manifest


def _stored_index(folder: Path, manifest: dict[str, Any]) -> "faiss.Index | None":
    entry = manifest["index"]
    if entry["file"] is None:
        return None
    path = folder / entry["file"]
    size = path.stat().st_size if path.exists() else 0
    advice = "build the index again (the vectors are kept)"
    if size != entry["bytes"]:
        raise DataError(f"{path} has {size} bytes, the manifest says {entry['bytes']}: {advice}")
    index = read_faiss(path, advice)
    if (index.ntotal, index.d) != (manifest["passages"], manifest["dimension"]):
        raise DataError(f"{path} holds {index.ntotal} vectors of {index.d} numbers: {advice}")
    return index


def _identity(source: dict[str, Any], settings: DenseConfig, manifest: dict[str, Any]) -> str:
    named = {key: value for key, value in source.items() if key not in ("encoder", "revision")}
    named |= describe_index(settings, source["passages"])
    # Published vectors are equal to ours up to rounding, which may decide between near equals.
    if published := sorted({shard["from"] for shard in manifest["shards"] if "from" in shard}):
        named["published"] = published
    if settings.index == "hnsw":
        named["depth"] = settings.hnsw_search_depth
    elif settings.index == "ivf-pq":
        named["depth"] = [settings.ivf_probes, settings.pq_rescore]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
