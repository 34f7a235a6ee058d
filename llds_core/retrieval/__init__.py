"""Search engines behind `<search>`, and searches that fail on purpose: queries in, hits out."""

from llds_core.retrieval.base import Hit, Retriever, SearchKey, format_hits
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.retrieval.client import (
    Health,
    RetrieverClient,
    ServiceIdentity,
    ask_health,
    local_address,
)
from llds_core.retrieval.dense import DenseRetriever
from llds_core.retrieval.encoder import PACKAGED, Encoder, encoder_folder, encoder_hash
from llds_core.retrieval.failures import FailingRetriever
from llds_core.retrieval.index import (
    build_index,
    checked_manifest,
    index_kind,
    read_index_manifest,
)
from llds_core.retrieval.passage_file import PassageFile, StoredMap, passages_hash, stored_map

__all__ = [
    "PACKAGED",
    "BM25Retriever",
    "DenseRetriever",
    "Encoder",
    "FailingRetriever",
    "Health",
    "Hit",
    "PassageFile",
    "Retriever",
    "RetrieverClient",
    "SearchKey",
    "ServiceIdentity",
    "StoredMap",
    "ask_health",
    "build_index",
    "checked_manifest",
    "encoder_folder",
    "encoder_hash",
    "format_hits",
    "index_kind",
    "local_address",
    "passages_hash",
    "read_index_manifest",
    "stored_map",
]
