"""The service benchmark runs on the smallest profile and accounts for every search."""

import csv
import json
from pathlib import Path

import pytest

from llds_core.bench.faults import FAULTS, FaultyFront
from llds_core.bench.service import bench_service


@pytest.mark.slow
def test_every_search_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `llds_core retriever` itself, in a process of its own."""
    out = tmp_path / "new" / "service.csv"
    bench_service(
        "smoke",
        out,
        clients=8,
        requests_in_all=80,
        searches=60,
        timeout_seconds=0.2,
        progress=False,
    )
    with out.open(encoding="utf-8", newline="") as file:
        rows = {row["measure"]: row["value"] for row in csv.DictReader(file)}
    assert rows["load: searches"] == "80"
    assert rows["load: wrong or failed"] == rows["faults: wrong"] == "0"
    assert int(rows["faults: right"]) + int(rows["faults: ended in an error"]) == 60
    injected = sum(int(rows[f"faults: {name}"]) for name in FAULTS)
    assert int(rows["faults: requests"]) >= injected > 0
    assert "load: rate" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "new" / "service.manifest.json").read_text("utf-8"))
    assert manifest["profile"] == "smoke" and manifest["packages"]["uvicorn"]
    assert manifest["faults"] == dict(FAULTS)


def test_faults_come_as_often_as_told_and_the_same_each_time() -> None:
    fronts = [FaultyFront("http://127.0.0.1:9", stall_seconds=0, seed=1) for _ in range(2)]
    drawn = [[front.draw() for _ in range(4000)] for front in fronts]
    for front in fronts:
        front.close()
    assert drawn[0] == drawn[1]
    for name, share in FAULTS.items():
        assert fronts[0].counts[name] / 4000 == pytest.approx(share, abs=0.02)
