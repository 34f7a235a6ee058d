"""Search engines behind `<search>`, and searches that fail on purpose: queries in, hits out."""

from llds_core.retrieval.base import FailingRetriever, Hit, Retriever, SearchKey
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.retrieval.client import RetrieverClient, ServiceIdentity, ask_health
from llds_core.retrieval.dense import DenseRetriever
from llds_core.retrieval.index import build_index
from llds_core.retrieval.passage_file import PassageFile, passages_hash
