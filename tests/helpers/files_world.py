"""A world of files in the published schemas, small enough to search and train on in seconds, and a
policy of Qwen2's architecture and tokenizer class whose tags are several tokens, as the real one's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import faiss
import pyarrow as pa
import pyarrow.parquet as pq

from llds_core.config import PolicyConfig
from llds_core.retrieval.encoder import Encoder
from llds_core.rollout.prompts import prompt_text
from llds_core.runs.policies import build_policy, build_tokenizer
from llds_core.worlds.atlas import build_atlas
from llds_core.worlds.benchmarks import BENCHMARKS, CORPUS_FILE, MIX_COUNTS, MIX_FILE
from llds_core.worlds.records import Passage, Question, write_corpus


def mix_row(source: str, index: int, question: Question) -> dict:
    """A row of Search-R1's training mix."""
    answers = list(question.golden_answers)
    return {
        "id": f"train_{index}",
        "question": question.question,
        "golden_answers": answers,
        "data_source": source,
        "prompt": [{"role": "user", "content": prompt_text(question.question, "search-r1")}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"index": index, "split": "train"},
    }


def write_files_world(folder: Path, *, train: int = 12, test: int = 2) -> None:
    """Corpus, training mix and the seven benchmarks; `train` and `test` questions of each source.

    Passages and questions are the atlas's.
    """
    atlas = build_atlas(cities=40, countries="cities")
    for file in (CORPUS_FILE, MIX_FILE):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    write_corpus(folder / CORPUS_FILE, atlas.passages)
    questions = iter((*atlas.train, *atlas.test))
    rows = [
        mix_row(source, index, next(questions)) for source in MIX_COUNTS for index in range(train)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / MIX_FILE)
    for benchmark in BENCHMARKS.values():
        file = folder / "questions" / benchmark.file
        file.parent.mkdir(parents=True, exist_ok=True)
        asked = [next(questions) for _ in range(test)]
        lines = [
            {"id": f"test_{i}", "question": q.question, "golden_answers": list(q.golden_answers)}
            for i, q in enumerate(asked)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def write_published_vectors(file: Path, encoder: Encoder, passages: Sequence[Passage]) -> None:
    """The flat index of a corpus, as Search-R1 publishes one."""
    index = faiss.IndexFlatIP(encoder.dimension)
    index.add(encoder.encode_passages(passages))
    file.parent.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(file))


def write_policy(folder: Path) -> None:
    """A random Qwen2 with a byte-level vocabulary of its own."""
    texts = [prompt_text("Where is Homs?", "search-r1")] * 20
    tokenizer = build_tokenizer(texts, 400, ())
    sizes = PolicyConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, layers=2, heads=4, key_value_heads=2
    )
    build_policy(sizes, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
