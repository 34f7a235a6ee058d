"""A world of files in the published schemas, small enough to search and train on in seconds, and a
policy of Qwen2's architecture and tokenizer class whose tags are several tokens, as the real one's.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from dense_worlds import write_corpus

from llds_core.config import PolicyConfig
from llds_core.rollout.prompts import prompt_text
from llds_core.runs.policies import build_policy, build_tokenizer
from llds_core.worlds import QUESTION_SETS, Question, build_atlas
from llds_core.worlds.question_sets import CORPUS_FILE, MIX_FILE, QUESTIONS_FOLDER


def write_files_world(folder: Path, *, train: int = 12, test: int = 2) -> None:
    """The atlas as corpus, training mix and seven benchmarks, of so many questions a source."""
    atlas = build_atlas(cities=40, countries="cities")
    write_corpus(folder / CORPUS_FILE, atlas.passages)
    questions = iter((*atlas.train, *atlas.test))
    sources = ("nq", "hotpotqa")
    rows = [row | {"data_source": name} for name in sources for row in _rows(train, questions)]
    (folder / MIX_FILE).parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / MIX_FILE)
    for known in QUESTION_SETS.values():
        file = folder / QUESTIONS_FOLDER / known.file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) + "\n" for row in _rows(test, questions)]
        file.write_text("".join(lines), "utf-8")


def _rows(count: int, questions: Iterator[Question]) -> list[dict]:
    return [
        {
            "id": f"row_{i}",
            "question": q.question,
            "golden_answers": list(q.golden_answers),
            "prompt": [{"role": "user", "content": prompt_text(q.question, "search-r1")}],
        }
        for i, q in enumerate(islice(questions, count))
    ]


def write_policy(folder: Path) -> None:
    """A random Qwen2 with a byte-level vocabulary of its own."""
    texts = [prompt_text("Where is Homs?", "search-r1")] * 20
    tokenizer = build_tokenizer(texts, 400, ())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4}
    config = PolicyConfig(**sizes, vocab_size=400, key_value_heads=2)
    build_policy(config, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
