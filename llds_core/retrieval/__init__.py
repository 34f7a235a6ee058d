"""Search engines behind `<search>`, and searches that fail on purpose."""

from llds_core.retrieval.base import Hit, Retriever, SearchKey, format_hits
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.retrieval.failures import FailingRetriever

__all__ = ["BM25Retriever", "FailingRetriever", "Hit", "Retriever", "SearchKey", "format_hits"]
