"""How much disk and memory an index takes, by arithmetic, before anything is built.

    stored vectors   n · d · b               b = 4 bytes a number, 2 with `dense.half`
    flat             n · d · 4               in memory; a file only as stored vectors
    hnsw             n · (d · 4 + links)     links = 4 (2M + M / (M - 1)) + 12 bytes, M neighbours
    ivf-pq           n · (m + 8) + tables    m = bytes a vector; tables = cells · (4d + 8) + 1024 d
    offsets          8 · (n + 9)             where each passage begins, mapped from disk

A node of the graph has 2M links on the lowest level and M on each of the M / (M - 1) - 1 levels
it is on above, on average. Not counted: headers, the encoder, and what building takes on top, which
for `hnsw` and `ivf-pq` can be as much again while arrays grow.
"""

from dataclasses import dataclass, replace

from llds_core.config import DenseConfig
from llds_core.markdown import markdown_table
from llds_core.retrieval.index import PQ_CENTROIDS, cells
from llds_core.retrieval.passage_file import HEADER

WIKIPEDIA_PASSAGES = 21_015_324
"""Passages of 100 words in the Wikipedia dump of December 2018 that the paper searches."""

TEXT_BYTES = 660
"""Bytes of a line of that corpus, roughly."""

_FLOAT = 4


@dataclass(frozen=True)
class IndexSize:
    """Bytes by where they are.

    Attributes:
        text: corpus file, on disk.
        offsets: map of the corpus file, on disk and mapped into memory.
        vectors: stored vectors, on disk; `ivf-pq` reads from them while searching.
        index: FAISS index, on disk; 0 where the stored vectors are the index.
        memory: index in main memory, when a CPU searches.
        gpu: index in GPU memory, when GPUs search; None where they do not.
    """

    text: int
    offsets: int
    vectors: int
    index: int
    memory: int
    gpu: int | None

    @property
    def disk(self) -> int:
        """Everything on disk."""
        return self.text + self.offsets + self.vectors + self.index


def index_size(
    settings: DenseConfig, passages: int, dimension: int, *, text_bytes: float = TEXT_BYTES
) -> IndexSize:
    """Return the size of the index of `settings`.

    Args:
        settings: kind of the index, its parameters, precision.
        passages: number of passages.
        dimension: length of a vector.
        text_bytes: mean length of a line of the corpus, in bytes.
    """
    numbers = passages * dimension
    stored = 2 if settings.half else _FLOAT
    built, gpu = 0, numbers * stored
    memory = numbers * _FLOAT
    if settings.index == "hnsw":
        built = memory = numbers * _FLOAT + _links(settings.hnsw_neighbours, passages)
        gpu = None
    elif settings.index == "ivf-pq":
        built = memory = gpu = _codes(settings, passages, dimension)
    return IndexSize(
        text=round(passages * text_bytes),
        offsets=8 * (passages + 1 + HEADER),
        vectors=numbers * stored,
        index=built,
        memory=memory,
        gpu=gpu,
    )


def size_table(passages: int = WIKIPEDIA_PASSAGES, dimension: int = 768) -> str:
    """Return a Markdown table of what each kind of index takes, in GB of 10^9 bytes."""
    settings = DenseConfig()
    kinds = {
        "flat": settings,
        "flat, 16 bits": replace(settings, half=True),
        "hnsw": replace(settings, index="hnsw"),
        "ivf-pq": replace(settings, index="ivf-pq"),
        "ivf-pq, 16 bits": replace(settings, index="ivf-pq", half=True),
    }
    columns = ("index", "text", "offsets", "stored vectors", "index file", "disk", "memory", "GPU")
    rows = []
    for name, chosen in kinds.items():
        size = index_size(chosen, passages, dimension)
        parts = (size.text, size.offsets, size.vectors, size.index, size.disk, size.memory)
        gpu = "–" if size.gpu is None else f"{size.gpu / 1e9:.1f}"
        rows.append([name, *(f"{part / 1e9:.1f}" for part in parts), gpu])
    return f"{passages:,} passages × {dimension} numbers, GB:\n\n{markdown_table(columns, rows)}"


def _links(neighbours: int, passages: int) -> int:
    """Links of all levels, the level of each node and where its links begin."""
    slots = 2 * neighbours + neighbours / (neighbours - 1)
    return round(passages * (4 * slots + 4 + 8))


def _codes(settings: DenseConfig, passages: int, dimension: int) -> int:
    """Codes with eight bytes of index each, centres and sizes of the cells, and the code book."""
    lists = cells(settings, passages)
    tables = lists * (_FLOAT * dimension + 8) + PQ_CENTROIDS * dimension * _FLOAT
    return passages * (settings.pq_bytes + 8) + tables
