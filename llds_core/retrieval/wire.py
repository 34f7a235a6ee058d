"""What travels between the search service and its clients: Search-R1's contract, read strictly.

    request   {"queries": [str, …], "topk": int | null, "return_scores": bool}
    answer    {"result": [[{"document": {"id": str, "contents": str}, "score": float}, …], …]}

An answer has one list per query, best first; without scores its items are the documents themselves,
which Search-R1's own server cannot send. `topk` 0 or null asks for three passages. Fields with
other names are ignored, as clients of other servers send some. The header `IDENTITY_HEADER` of
every answer says what was searched.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from llds_core.config import ServiceConfig
from llds_core.errors import LLDSError
from llds_core.retrieval.base import Hit
from llds_core.worlds.records import shown, split_contents

DEFAULT_TOP_K = 3
IDENTITY_HEADER = "X-Retriever-Identity"

_SPARE = 64  # strings, commas and brackets of a request beside those of its queries


class BadRequestError(LLDSError, ValueError):
    """A request that is not as agreed."""


class BadAnswerError(LLDSError, ValueError):
    """An answer that is not as agreed."""


@dataclass(frozen=True)
class ServiceIdentity:
    """What a service searches.

    Attributes:
        index: changes with corpus, search engine or settings.
        corpus: changes with the passages or their order.
        backend: name of the search engine.
        passages: how many there are.
    """

    index: str
    corpus: str
    backend: str
    passages: int


@dataclass(frozen=True)
class SearchRequest:
    """A request that is within all limits."""

    queries: Sequence[str]
    k: int
    return_scores: bool


def parse_request(body: bytes, settings: ServiceConfig) -> SearchRequest:
    """Read the body of a request.

    Raises:
        BadRequestError: when it is no JSON of the agreed form, or exceeds a limit of `settings`.
    """
    _check_shape(body, settings.max_queries)
    row = _parse(body, BadRequestError)
    if not isinstance(row, dict) or "queries" not in row:
        raise BadRequestError(f'no "queries" in {shown(row)}: send {{"queries": ["…"]}}')
    queries = _queries(row["queries"], settings)
    k = _top_k(row.get("topk"), settings)
    if len(queries) * k > settings.max_hits:
        raise BadRequestError(
            f"{len(queries)} queries with topk {k} ask for more than {settings.max_hits} passages: "
            "send fewer queries in one request"
        )
    return_scores = row.get("return_scores", False)
    if not isinstance(return_scores, bool):
        raise BadRequestError(f'"return_scores" is {shown(return_scores)}: send true or false')
    return SearchRequest(queries, k, return_scores)


def render_request(queries: Sequence[str], k: int) -> bytes:
    """Return the body of a request with scores; half a surrogate pair becomes a question mark."""
    row = {"queries": list(queries), "topk": k, "return_scores": True}
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")


def query_bytes(query: str) -> int:
    """Bytes that `query` takes in the body of a request."""
    return len(json.dumps(query, ensure_ascii=False).encode("utf-8", "replace")) + 2


def render_answer(results: Sequence[Sequence[Hit]], *, return_scores: bool) -> bytes:
    """Return the body of an answer.

    Raises:
        ValueError: when a score is not finite.
    """
    rows: list[list[dict[str, Any]]] = []
    for hits in results:
        documents = [{"id": hit.id, "contents": hit.contents} for hit in hits]
        if return_scores:
            scored = zip(documents, hits, strict=True)
            rows.append([{"document": document, "score": hit.score} for document, hit in scored])
        else:
            rows.append(documents)
    return json.dumps({"result": rows}, ensure_ascii=False, allow_nan=False).encode()


def parse_answer(body: bytes, queries: int, k: int, *, need_ids: bool) -> list[list[Hit]]:
    """Read the body of an answer with scores.

    Args:
        body: the bytes received.
        queries: how many were asked.
        k: how many passages each may have.
        need_ids: refuse documents without an id, which Search-R1's BM25 server sends; they get
            the hash of their contents otherwise.

    Raises:
        BadAnswerError: when anything in it is not as agreed.
    """
    row = _parse(body, BadAnswerError)
    results = row.get("result") if isinstance(row, dict) else None
    if not isinstance(results, list):
        raise BadAnswerError(f'no list "result" in {shown(row)}')
    if len(results) != queries:
        raise BadAnswerError(f"{len(results)} results for {queries} queries")
    for items in results:
        if not isinstance(items, list) or len(items) > k:
            raise BadAnswerError(f"{shown(items)} is no list of at most {k} passages")
    return [[_hit(item, need_ids) for item in items] for items in results]


def parse_identity(body: bytes) -> ServiceIdentity | None:
    """Read the answer to `/health`; None when it comes from another kind of server.

    Raises:
        BadAnswerError: when it is no JSON.
    """
    row = _parse(body, BadAnswerError)
    if not isinstance(row, dict):
        return None
    names = {"index": str, "corpus": str, "backend": str, "passages": int}
    if not all(isinstance(row.get(name), kind) for name, kind in names.items()):
        return None
    return ServiceIdentity(**{name: row[name] for name in names})


def _check_shape(body: bytes, max_queries: int) -> None:
    """Refuse what would take far more memory as Python objects than as text: such as four million
    empty lists, or a depth that exhausts the parser.

    Strings are cut out first, for what stands in a query is nobody's business.
    """
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * (max_queries + _SPARE):
        raise BadRequestError(f"more than {max_queries} queries: send fewer in one request")
    outside = b"".join(unescaped.split(b'"')[::2])
    if outside.count(b",") > max_queries + _SPARE:
        raise BadRequestError(f"more than {max_queries} queries: send fewer in one request")
    if (brackets := outside.count(b"[") + outside.count(b"{")) > _SPARE:
        raise BadRequestError(
            f"{brackets} lists and objects: send one object with one list of queries"
        )


def _parse(body: bytes, error: type[LLDSError]) -> Any:
    def refuse(name: str) -> NoReturn:
        raise error(f"{name} is no number of JSON: send a finite one")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as cause:
        raise error(f"not UTF-8 at byte {cause.start}: send JSON in UTF-8") from None
    except json.JSONDecodeError as cause:
        raise error(f"not JSON ({cause.msg} at character {cause.pos}): send one object") from None
    except LLDSError:
        raise
    except (ValueError, RecursionError):
        raise error("not JSON (a number too long, or too deep): send one object") from None


def _queries(queries: Any, settings: ServiceConfig) -> list[str]:
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise BadRequestError(f'"queries" is {shown(queries)}: send a list of strings')
    if len(queries) > settings.max_queries:
        raise BadRequestError(
            f"{len(queries)} queries: send at most {settings.max_queries} in one request"
        )
    longest = max(map(len, queries), default=0)
    if longest > settings.max_query_chars:
        raise BadRequestError(
            f"a query of {longest} characters: send at most {settings.max_query_chars}"
        )
    try:
        "".join(queries).encode()
    except UnicodeEncodeError:
        raise BadRequestError(
            "half a surrogate pair in a query: send the whole character"
        ) from None
    return queries


def _top_k(value: Any, settings: ServiceConfig) -> int:
    if value is None:
        return DEFAULT_TOP_K
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequestError(f'"topk" is {shown(value)}: send a whole number from 1, or null')
    if value > settings.max_top_k:
        raise BadRequestError(f'"topk" is {shown(value)}: send at most {settings.max_top_k}')
    return value or DEFAULT_TOP_K


def _hit(item: Any, need_ids: bool) -> Hit:
    document = item.get("document") if isinstance(item, dict) else None
    contents = document.get("contents") if isinstance(document, dict) else None
    if not isinstance(contents, str):
        raise BadAnswerError(f"{shown(item)} has no document with contents")
    id_ = document.get("id")
    if id_ is None and not need_ids:
        id_ = hashlib.sha256(contents.encode("utf-8", "replace")).hexdigest()[:16]
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)  # some published corpora number their passages
    if not isinstance(id_, str):
        raise BadAnswerError(f"a document has the id {shown(id_)}, no string")
    score = item.get("score")
    if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
        raise BadAnswerError(f"document {shown(id_)} has the score {shown(score)}, no number")
    return Hit(id_, *split_contents(contents), float(score))
