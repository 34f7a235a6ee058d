"""Arguments and options that several commands of the command line take."""

import os
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from llds_core.config.given import MOST_SEED
from llds_core.config.load import layouts, methods, profiles

_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def _hide_bars(quiet: bool) -> bool:
    """Hide progress bars: of whatever the command imports, and of its children."""
    if quiet:
        os.environ |= dict.fromkeys(_NO_BARS, "1")
    return quiet


# Words separated by commas are one text here; `words` and `numbers` of `given` part them.
Profile = Annotated[str, Argument(help=f"one of: {', '.join(profiles())}")]
Experiment = Annotated[str, Argument(help=f"<profile>/<method>; methods: {', '.join(methods())}")]
AnyExperiment = Annotated[str, Argument(help="a profile, or <profile>/<method>")]
Overrides = Annotated[
    list[str],
    Argument(
        metavar="KEY=VALUE",
        help="e.g. training.learning_rate=1e-4",
        default_factory=list,
        show_default=False,
    ),
]
Root = Annotated[Path, Option("--run-root", help="folder of runs")]
Quiet = Annotated[bool, Option("--quiet", help="no progress bars", callback=_hide_bars)]
Json = Annotated[bool, Option("--json", help="print JSON")]
Publish = Annotated[bool, Option("--publish", help="copy into results/published")]
OutDir = Annotated[Path | None, Option(help="folder of the output (default: results/<profile>)")]
Seed = Annotated[int, Option(help="seed of the run", min=0, max=MOST_SEED)]
Seeds = Annotated[str, Option(metavar="N,N", help="seeds, separated by commas")]
MainSeeds = Annotated[
    str, Option(metavar="N,N", help="seeds (default: the first of the profile's study, else 0)")
]
Arms = Annotated[str, Option(metavar="NAME,NAME", help="methods, separated by commas")]
Layout = Annotated[str | None, Option(help=f"{', '.join(layouts())} (default: the profile's)")]
Rank = Annotated[
    int, Option("--machine-rank", help="several machines: number of this, from 0", min=0)
]
Address = Annotated[str, Option("--main-address", help="several machines: address of the first")]
Port = Annotated[
    int, Option("--main-port", help="several machines: free port of the first", min=1, max=65_535)
]
Checkpoint = Annotated[
    str, Option(help="best, last, best-30 (of 30 steps), start, a folder; of benchmarks smollm2")
]
Split = Annotated[Literal["dev", "test"], Option(help="questions")]
Benchmarks = Annotated[str, Option(metavar="NAME,NAME", help="e.g. nq,hotpotqa (default: all)")]
Limit = Annotated[int | None, Option(help="questions in all, spread evenly (default: all)", min=1)]
Mode = Annotated[str, Option(help="greedy, sampled or both, with a comma")]
Samples = Annotated[int, Option(help="sampled answers per question", min=1)]
Method = Annotated[str | None, Option(help="method of the run that is scored")]
