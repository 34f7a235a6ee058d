"""The search service of a profile, as long as it is needed.

A service that already answers at `service.url` is used and left running; otherwise one is started
there, in an environment of its own where one is given, and stopped at the end, whatever that end
is. On Linux the kernel stops it when this process is killed.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError, RetrieverChangedError, RetrieverError, RunError
from llds_core.machine.jobs import Child, stop_children
from llds_core.retrieval.client import Health, ask_health, local_address

START_SECONDS = 3600.0
"""Until it must be ready: an exact index over Wikipedia is 65 GB to be read from disk."""
OTHER_ADDRESS = "or choose another address, e.g. service.url=http://127.0.0.1:8010"

_POLL_SECONDS = 0.2
_REPORT_SECONDS = 30.0


@contextmanager
def running_retriever(
    config: ExperimentConfig,
    corpus: str,
    overrides: Sequence[str],
    log: Path,
    *,
    environment: Path | None = None,
) -> Iterator[None]:
    """Hold a ready search service over `corpus`, as it names that, at `service.url`. One that is
    started here gets the `overrides` of the user, writes to `log`, and runs in the virtual
    environment in the folder `environment`, None for this one.
    """
    url = config.service.url
    found = _settled(url, "look into its log, or stop it")
    if found.state != "silent":
        check_service(url, found, corpus)
        print(f"retriever at {url} is running already; it is left running", flush=True)
        yield
        return
    if (address := local_address(url)) is None:
        raise ConfigError(
            f"no retriever answers at {url}, and it is not this machine: start it there with "
            f'"make retriever PROFILE={config.profile} BACKEND=dense HOST=0.0.0.0", or set '
            "service.url"
        )
    python = Path(sys.executable) if environment is None else environment / "bin" / "python"
    if not python.is_file():
        raise ConfigError(
            f"{environment} is not a virtual environment (no {python}): make it with "
            f'"make retriever-env RETRIEVER_ENV={environment}", or leave RETRIEVER_ENV empty'
        )
    command = [str(python), "-m", "llds_core", "retriever", config.profile, *overrides]
    # A machine's own name may mean its loopback address to itself.
    host = address[0] if config.hardware.nodes == 1 else "0.0.0.0"
    command += ["--backend", "dense", "--host", host, "--port", str(address[1])]
    print(f"retriever starts at {url} (log: {log})", flush=True)
    # Without what names our own environment, which may not be its own.
    own = {"VIRTUAL_ENV": None, "PYTHONHOME": None}
    child = Child(command, log, environment=own, all_output=True)
    try:
        states = ("silent", "loading", "foreign")
        found = _settled(url, f"look into {log}", unsettled=states, child=child)
        check_service(url, found, corpus)
        yield
    finally:
        stop_children(child)
        print("retriever stopped", flush=True)


def wait_for_service(url: str, corpus: str) -> None:
    """Wait for a search service over `corpus` that another machine starts at `url`."""
    found = _settled(url, "look at the first machine", unsettled=("silent", "loading"))
    check_service(url, found, corpus)


def check_service(url: str, found: Health, corpus: str | None) -> None:
    """Check that what was `found` at `url` is a search service over `corpus`; None for any."""
    if found.state not in ("ready", "unnamed"):
        raise ConfigError(
            f"{url} is taken by something that is not a search service: stop it, {OTHER_ADDRESS}"
        )
    if found.identity is not None and corpus and found.identity.corpus != corpus:
        raise RetrieverChangedError(
            f"retriever at {url} searches corpus {found.identity.corpus}, this profile is about "
            f"{corpus}: stop it, {OTHER_ADDRESS}"
        )


def _settled(
    url: str, advice: str, *, unsettled: Sequence[str] = ("loading",), child: Child | None = None
) -> Health:
    """What is at `url`, once its state is none of `unsettled`; `child` is the service when it was
    started here.
    """
    started = reported = time.monotonic()
    while True:
        if child and child.code is not None:
            raise RunError(f"the retriever ended: {child.failure()} (log: {child.log})")
        found = ask_health(url, timeout=10)
        if found.state not in unsettled:
            return found
        now = time.monotonic()
        if now - started > START_SECONDS:
            raise RetrieverError(
                f"retriever at {url} is not ready after {START_SECONDS:g} s ({found.state}): "
                f"{advice}"
            )
        if now - reported > _REPORT_SECONDS:
            reported = now
            print(f"   {found.state} for {now - started:.0f} s", flush=True)
        time.sleep(_POLL_SECONDS)
