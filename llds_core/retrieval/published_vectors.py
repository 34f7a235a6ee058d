"""Vectors that somebody else encoded: a flat FAISS index instead of hours of encoding.

Such a file says nothing of its corpus and encoder. So some of its vectors are compared with what
the encoder at hand makes of the passages at the same places, the first and the last among them.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llds_core.errors import ConfigError, DataError
from llds_core.retrieval.encoder import Encoder, unit_length
from llds_core.retrieval.faiss_files import import_faiss, read_faiss
from llds_core.seeding import numpy_generator
from llds_core.worlds.records import Passage

if TYPE_CHECKING:
    import faiss

CHECKED = 32
"""Passages that are encoded again and compared."""

SAME = 0.995
"""Least cosine between two encodings of one passage; 16 bits against 32 give more than 0.999."""


class PublishedVectors:
    """Vectors of a flat FAISS index of inner products, in the order of a corpus.

    The file is opened and checked with the first vectors that are asked for, mapped, not read.

    Args:
        path: the file, as `faiss.write_index` writes it.
        passages: the corpus it should be of.
        encoder: the encoder it should be made with.
    """

    def __init__(self, path: Path, passages: Sequence[Passage], encoder: Encoder) -> None:
        self._path = path
        self._passages = passages
        self._encoder = encoder

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Return float32 vectors from one index to another, scaled to length 1.

        Raises:
            ConfigError: when the file or FAISS is missing.
            DataError: when the file is no such index, or of another corpus or encoder.
        """
        return self._scaled(self._index.reconstruct_n(start, stop - start), range(start, stop))

    @cached_property
    def _index(self) -> "faiss.IndexFlat":
        if not self._path.is_file():
            raise ConfigError(
                f"dense.vectors is {self._path}, which is missing: fetch it (make data), or set "
                "dense.vectors=null to encode the corpus"
            )
        index = read_faiss(self._path, "fetch it again, or set dense.vectors=null", mapped=True)
        self._check_kind(index)
        self._check_vectors(index)
        return index

    def _scaled(self, vectors: np.ndarray, places: Sequence[int]) -> np.ndarray:
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{self._path}: vector {places[int(finite.argmin())]} has numbers that are not "
                "finite: fetch it again, or set dense.vectors=null"
            )
        return unit_length(vectors)

    def _check_kind(self, index: "faiss.Index") -> None:
        faiss = import_faiss()
        kind, wanted = type(index).__name__, (len(self._passages), self._encoder.dimension)
        flat = isinstance(index, faiss.IndexFlat)
        if not flat or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise DataError(
                f"{self._path} is a {kind}: dense.vectors takes a flat index of inner products "
                "(IndexFlatIP)"
            )
        if (index.ntotal, index.d) != wanted:
            raise DataError(
                f"{self._path} holds {index.ntotal} vectors of {index.d} numbers, the corpus has "
                f"{wanted[0]} passages and the encoder gives {wanted[1]} numbers: name the index "
                "of this corpus, or set dense.vectors=null"
            )

    def _check_vectors(self, index: "faiss.IndexFlat") -> None:
        size = len(self._passages)
        random = numpy_generator(0, "dense", "published")
        drawn = {0, size - 1, *random.integers(size, size=CHECKED).tolist()}
        places = sorted(drawn)
        stored = self._scaled(np.stack([index.reconstruct(place) for place in places]), places)
        encoded = self._encoder.encode_passages([self._passages[place] for place in places])
        cosines = (stored * encoded).sum(axis=1)
        worst = int(cosines.argmin())
        if cosines[worst] < SAME:
            raise DataError(
                f"{self._path}: vector {places[worst]} is not that of passage "
                f'"{self._passages[places[worst]].id}" (cosine {cosines[worst]:.3f}, '
                f"{(cosines < SAME).sum()} of {len(places)} differ): it is of another corpus, "
                "encoder or prefix; name its own, or set dense.vectors=null"
            )
