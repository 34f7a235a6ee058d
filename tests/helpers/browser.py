"""A page as a headless browser draws it, away from any network."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="no headless browser")


def drawn(page: Path, script: str = "") -> str:
    """Document of `page` after its scripts and `script`; a request would be logged, and fail."""
    if script:
        text = page.read_text("utf-8")
        page = page.with_name(f"scripted-{page.name}")
        page.write_text(f"{text}<script>{script}</script>", "utf-8")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000"]
    words += ["--window-size=1366,900"]
    words += ["--enable-logging=stderr", page.as_uri()]
    made = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in made.stderr
    return made.stdout
