"""Every format in its exact shape, whole and damaged: a right answer or one clear line."""

import gzip
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from run_helpers import refused
from transformers import PrinterCallback, TrainerControl, TrainerState

from llds_core.errors import ConfigError, DataError
from llds_core.monitor.training_log import read_log, to_log

CLIP = [0.01, 0.02, 0.03]
# As printed by verl 0.9.1's `concat_dict_to_str`, of numpy's numbers among others.
VERL = (
    "step:{0} - actor/entropy:np.float64(0.218) - actor/kl_loss:0.0 - actor/pg_clipfrac:{1} - "
    "actor/grad_norm:nan - critic/score/mean:0.903 - training/global_step:{0} - "
    "num_turns/mean:np.float64(2.5) - actor/lr:1e-06"
)
RAY = "\x1b[36m(TaskRunner pid=4711)\x1b[0m "
OLD_VERL = "(main_task pid=1) step:{0} - actor/entropy_loss:0.218 - actor/pg_clipfrac:{1}"


def lines(form, steps=(1, 2, 3), values=CLIP):
    return "".join(form.format(s, v) + "\n" for s, v in zip(steps, values, strict=True))


def json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(key="clip_fraction", step="step", **more):
    return [{step: s, key: v, **more} for s, v in enumerate(CLIP, 1)]


def json_rows(*keys, **more):
    return json_lines(*rows_of(*keys, **more))


def nested(outer, key):
    return json_lines(*({"step": s, outer: {key: v}} for s, v in enumerate(CLIP, 1)))


SLIME = "".join(
    f"[2026-11-01] rollout {s - 1}: {{'rollout/raw_reward': 0.5, 'rollout/log_probs': -0.2}}\n"
    f"[2026-11-01] step {2 * s}: {{'train/pg_clipfrac': 0.0, 'train/grad_norm': 0.4}}\n"
    f"[2026-11-01] step {2 * s + 1}: {{'train/pg_clipfrac': {2 * v}, 'train/grad_norm': 0.6}}\n"
    for s, v in enumerate(CLIP, 1)
)
OURS = json_rows()
SKYRL = json_rows("policy/loss_metrics/clip_ratio", "trainer/global_step")
TINKER = json_rows("optim/entropy", "progress/batch", **{"env/all/reward/total": 0.5})
NARROW = "".join(f"{{'clip_ra\ntio': {v}, 'loss': 0.\n5, 'epoch': 0.1}}\n" for v in CLIP)
EVALUATED = [{"step": s, "clip_fraction": 9} for s in range(1, 9)]
OBJECT = {"log_history": None, "tags": ["a"] * 9, "eval": EVALUATED, "samples": [{"step": 1}] * 9}
WANDB = "Step,r1 - actor/pg_clipfrac,r1 - actor/pg_clipfrac__MIN\n1,0.01,0\n2,0.02,0\n3,0.03,0\n"

SHAPES = {
    "ours": ("metrics.jsonl", json_rows(kl=None, valid_searches=1.5), "llds"),
    "anybody's": ("log.jsonl", OURS, "unknown origin"),
    "nested": ("log.jsonl", nested("actor", "pg_clipfrac"), "verl"),
    "verl console": ("out.log", lines(VERL), "verl"),
    "verl console, Ray": ("out.log", lines(RAY + VERL), "verl"),
    "verl console, old": ("out.txt", "INFO start\n" + lines(OLD_VERL), "verl"),
    "verl file": ("run.jsonl", nested("data", "actor/pg_clipfrac"), "verl"),
    "prime-rl": ("metrics.jsonl", json_rows("is_masked/all/mean"), "prime-rl"),
    "tinker": ("metrics.jsonl", TINKER, "tinker"),
    "SkyRL": ("log.jsonl", SKYRL, "skyrl"),
    "slime": ("out.log", SLIME, "slime"),
    "CSV": ("a.csv", "step,clip_fraction,note\n1,0.01,a\n2,0.02,\n3,0.03,c\n", "unknown origin"),
    "TSV": ("log.tsv", "step\tactor/pg_clipfrac\n1\t0.01\n2\t0.02\n3\t0.03\n", "verl"),
    "decimal commas": ("a.csv", "step;actor/pg_clipfrac\n1;0,01\n2;0,02\n3;0,03\n", "verl"),
    "flat names": (
        *("log.csv", "training_global_step,actor_pg_clipfrac\n1,0.01\n2,0.02\n3,0.03\n"),
        "verl",
    ),
    "Weights & Biases": ("wandb.csv", WANDB, "verl"),
    "JSON lines by another ending": ("log.json", OURS, "unknown origin"),
    "object of rows": ("log.json", json.dumps(OBJECT | {"steps": rows_of()}), "unknown origin"),
    "broken by a narrow terminal": ("out.log", NARROW, "trl"),
    "bars before": ("out.log", " 10%|█ | 1/9\r" + lines(VERL), "verl"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_format_in_its_exact_shape(tmp_path: Path, shape: str) -> None:
    name, text, framework = SHAPES[shape]
    (tmp_path / name).write_text(text, "utf-8")
    log = read_log(tmp_path / name)
    metric = "entropy" if shape == "tinker" else "clip_fraction"
    assert log.framework == framework
    assert log.column(metric) == pytest.approx(CLIP)
    assert log.table["step"].tolist() == ([0, 1, 2] if shape == "slime" else [1, 2, 3])
    assert not [note for note in log.notes if "left out" in note]
    if shape == "slime":  # a rollout's updates are averaged
        assert log.column("grad_norm").tolist() == [0.5] * 3
        assert log.column("loglik_correct").tolist() == [-0.2] * 3


def test_trl_by_the_code_of_transformers(tmp_path: Path, capsys) -> None:
    """`trainer_state.json` as TrainerState writes it, the console as PrinterCallback prints it."""
    history = rows_of("clip_ratio/region_mean", loss=0.1, entropy=0.5, epoch=0.1)
    history.append({"eval_reward": 0.1, "step": 3})
    history.append({"train_runtime": 1.0, "train_loss": 0.1, "step": 3})
    folder = tmp_path / "out" / "checkpoint-3"
    folder.mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-1").mkdir()
    TrainerState(log_history=history).save_to_json(str(folder / "trainer_state.json"))
    state = SimpleNamespace(is_local_process_zero=True)
    for row in history:
        logs = {key: value for key, value in row.items() if key != "step"}
        PrinterCallback().on_log(None, state, TrainerControl(), logs)
    printed = capsys.readouterr().out
    assert "'0.01'" in printed  # numbers as text
    (tmp_path / "console.log").write_text(printed)
    for path in (tmp_path / "out", folder / "trainer_state.json", tmp_path / "console.log"):
        log = read_log(path)
        assert (log.framework, log.table["step"].tolist()) == ("trl", [1, 2, 3])
        assert log.column("clip_fraction") == pytest.approx(CLIP)
    assert read_log(tmp_path / "out").checkpoints == (1, 3)
    assert read_log(tmp_path / "console.log").checkpoints == ()
    assert "rows name no step and are counted" in log.notes


def test_of_several_states_the_one_that_went_furthest_is_read(tmp_path: Path) -> None:
    for folder, steps in ((".", 3), ("checkpoint-2", 2), ("checkpoint-5", 5)):
        (tmp_path / folder).mkdir(exist_ok=True)
        rows = [{"step": s, "reward": 0.5} for s in range(1, steps + 1)]
        state = TrainerState(log_history=rows, global_step=steps)
        state.save_to_json(str(tmp_path / folder / "trainer_state.json"))
    assert len(read_log(tmp_path).table) == 5
    # Of a state inside a checkpoint, the other checkpoints lie beside its folder.
    inside = read_log(tmp_path / "checkpoint-2/trainer_state.json")
    assert (len(inside.table), inside.checkpoints) == (2, (2, 5))
    (tmp_path / "checkpoint-5/trainer_state.json").unlink()
    assert len(read_log(tmp_path).table) == 3
    # Where steps restart in each epoch, nobody knows of which row a checkpoint is.
    rows = [{"epoch": e, "step": s, "clip_fraction": 0.1} for e in (0, 1) for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text(json_lines(*rows))
    assert read_log(tmp_path).checkpoints == ()


def test_rows_of_trl_are_averaged_per_rollout_where_its_updates_are_known(tmp_path: Path) -> None:
    rows = [{"step": s, "clip_ratio/region_mean": s % 2, "reward": s / 2} for s in range(1, 7)]
    (tmp_path / "log.jsonl").write_text(json_lines(*rows))
    log = read_log(tmp_path / "log.jsonl", updates_per_rollout=2)
    assert log.table["step"].tolist() == [2, 4, 6]
    assert log.column("clip_fraction").tolist() == [0.5] * 3
    assert log.column("updates_per_rollout").tolist() == [2.0] * 3
    # A row that is missing changes nothing for the others; verl's rows are rollouts.
    assert to_log(rows[:3] + rows[4:], "log", (), 2).table["step"].tolist() == [2, 3, 6]
    verl = [{"step": s, "critic/score/mean": 0.5} for s in range(1, 7)]
    assert len(to_log(verl, "log", (), 2).table) == 6
    # A rollout with one bad update is not finite.
    wrecked = [row | {"loss": math.nan if row["step"] == 3 else 0.1} for row in rows]
    assert to_log(wrecked, "log", (), 2).column("nonfinite").tolist() == [0, 1, 0]
    # Of a log that counts its updates nobody need tell them, though steps are left out.
    counted = to_log([{"step": s, "updates": 8 * s, "kl": 0.1} for s in (10, 20, 40)], "log")
    assert counted.column("updates_per_rollout").tolist() == [8.0] * 3
    # Rows that are several updates each, as of `logging_steps=10`, stay as they are.
    sparse = "".join(json_lines({**row, "step": 10 * row["step"]}) for row in rows)
    (tmp_path / "log.jsonl").write_text(sparse)
    assert len(read_log(tmp_path / "log.jsonl", updates_per_rollout=2).table) == 6


def test_tensorboard_needs_its_package(tmp_path: Path) -> None:
    file = tmp_path / "events.out.tfevents.1"
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        file.write_bytes(b"\0")
        refused(ConfigError, "pip install tensorboard", read_log, tmp_path)
        return
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate(CLIP, 1):
            writer.add_scalar("actor/pg_clipfrac", value, step)
    assert read_log(tmp_path).column("clip_fraction") == pytest.approx(CLIP)


FIRST, AGAIN = lines(VERL, (1, 2, 3)), lines(VERL, (2, 3, 4), [0.5, 0.6, 0.7])
DAMAGED = {
    "no end": (FIRST[:-1], CLIP, "the last line has no end"),  # all that is cut is actor/lr
    "cut console": (FIRST + VERL.format(4, 0.5)[:60], [*CLIP, None], "the last line has no end"),
    "cut value": (FIRST + VERL.format(4, 0.55)[:84], [*CLIP, None], "the last line has no end"),
    "cut json": (OURS + '{"step": 4, "cl', CLIP, "the last line has no end"),
    "words": (
        OURS
        + json_lines({"step": 4, "clip_fraction": "high"}, {"step": 5, "clip_fraction": True})
        + json_lines({"step": 6, "clip_fraction": "None"}),
        CLIP,
        "clip_fraction is no number 2 times, first 'high' in row 4",
    ),
    "torn inside": (OURS[:-1] + '\n{"st\n', CLIP, "1 damaged lines are left out"),
    "restart": (FIRST + AGAIN, [0.01, 0.5, 0.6, 0.7], "2 earlier rows"),
    "restart of ours": (OURS + OURS, CLIP, "3 earlier rows"),
    "another run first": (FIRST + lines(VERL, (1, 2, 3), [1, 2, 3]), [1, 2, 3], "3 earlier rows"),
    "split rows": (
        json_lines({"step": 1, "kl": 0.5}, {"step": 1, "clip_fraction": 0.01}, {"step": 2}),
        [0.01],
        "",
    ),
    "missing key": (lines(VERL, (1,), [0.01]) + "step:2 - actor/kl_loss:0.0\n", [0.01, None], ""),
    "infinite": (lines(VERL, (1, 2), ["inf", "-inf"]), [None, None], "clip_fraction is NaN"),
    "evaluations": (
        json_lines({"type": "eval", "step": 1, "clip_fraction": 9})
        + json_rows(type="train")
        + json_lines({"split": "Validation", "step": 4, "clip_fraction": 9}),
        CLIP,
        "2 rows of evaluations are left out",
    ),
    "evaluations by other words": (
        json_rows(phase="train")
        + json_lines({"phase": "val", "step": 4, "clip_fraction": 9})
        + json_lines({"mode": "TEST", "step": 5, "clip_fraction": 9}),
        CLIP,
        "2 rows of evaluations are left out",
    ),
    "two rows of a step": (
        OURS + json_lines({"step": 3, "clip_fraction": 0.3}),
        [*CLIP[:2], 0.3],
        "",
    ),
    "no last line end": (OURS[:-1], CLIP, ""),
    "exponents": (lines(VERL, (1, 2), ["1e-05", "np.float64(2.5E+1)"]), [1e-5, 25], ""),
    "steps of each epoch": (
        json_lines(*({"epoch": i // 2, "step": i % 2, "clip_fraction": i} for i in range(6))),
        [0, 1, 2, 3, 4, 5],
        "steps start anew in each epoch",
    ),
    "steps of each epoch, a restart, two rows of a step": (
        json_lines(*({"epoch": 0, "step": s, "clip_fraction": s} for s in (1, 2, 3)))
        + json_lines({"epoch": 1, "step": 1, "clip_fraction": 4}, {"epoch": 1, "step": 1, "kl": 1})
        + json_lines(*({"epoch": 1, "step": s, "clip_fraction": 9} for s in (2, 3)))
        + json_lines(*({"epoch": 1, "step": s, "clip_fraction": 3 + s} for s in (2, 3)))
        + json_lines({"epoch": 2, "step": 1, "clip_fraction": 7}),
        [1, 2, 3, 4, 5, 6, 7],
        "after a restart",
    ),
    "a restart in another epoch": (
        json_lines(*({"epoch": 0, "step": s, "clip_fraction": s} for s in (1, 2, 3)))
        + json_lines(*({"epoch": 1, "step": s, "clip_fraction": 4} for s in (2, 3))),
        [1, 4, 4],
        "2 earlier rows",
    ),
    "a dictionary that never ends": (
        "{'clip_ratio': 9, 'kl': 9, 'text': 'begun\n\n"
        + "args = {'clip_ratio': 9,\n 'kl': 9}\nrow {'clip_ratio': 9, 'text': 'cut\n"
        + "{'clip_ratio': 9, 'text': 'cut again\n"
        + "".join(f"{{'clip_ratio': {v}, 'loss': 0.5}}\n" for v in CLIP),
        CLIP,
        "rows name no step",
    ),
    "blank lines": ("\n\n" + FIRST.replace("\n", "\r\n\r\n"), CLIP, ""),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_gets_a_right_answer_and_a_note(tmp_path: Path, damage: str) -> None:
    text, values, note = DAMAGED[damage]
    (tmp_path / "out.log").write_text(text, newline="")
    log = read_log(tmp_path / "out.log")
    expected = [math.nan if value is None else value for value in values]
    assert log.column("clip_fraction") == pytest.approx(expected, nan_ok=True)
    assert note in " ".join(log.notes)


def of_two_runs(ahead):
    return "".join(lines(VERL, (s, s + ahead), [0.1, 0.2]) for s in range(1, 20))


REFUSED = {
    "empty": ("a.log", "", "holds no number of a known metric .no row: is it another --format"),
    "text": ("a.log", "hello\nworld\n", "no row: is it another --format"),
    "not sorted": ("a.jsonl", json_lines(*rows_of("kl")[::-1] * 4), "sorted by step"),
    "foreign columns": ("a.csv", "step;accuracy\n1;0.5\n", "keys: step, accuracy"),
    "words": ("a.csv", "step,reward\n1,up\n2,down\n", "is no number 2 times, first 'up' in row 1"),
    "decimal commas": ("a.csv", "step,reward\n1,0,5\n2,0,5\n", "2 rows of another length"),
    "an open quote": ("a.csv", 'step,reward\n1,"' + 200_000 * "x" + "\n", "cannot be read"),
    "foreign keys": ("a.jsonl", '{"step": 1, "accuracy": 2}\n', "keys: step, accuracy"),
    "two runs by turns": ("a.log", of_two_runs(0), "mix several runs"),
    "two runs at other steps": ("a.log", of_two_runs(6), "mix several runs"),
    "two runs in a table": ("a.csv", "step,seed,reward\n1,0,1\n1,1,1\n", "holds several runs"),
    "two runs by name": ("a.csv", "step,run_id,reward\n1,a,1\n2,b,1\n", "holds several runs"),
    "two runs of W&B": ("a.csv", "Step,a - reward,b - reward\n1,1,1\n", "holds 2 runs"),
    "no json": ("a.jsonl", '{"a\n{"b\n', "lines that are no JSON"),
    "half a state": ("trainer_state.json", '{"log_history": [{"step"', "no whole JSON file"),
    "no state": ("a.json", '{"model_type": "llama"}', "has no log_history"),
    "deep": ("a.json", "[" * 10_000, "no whole JSON"),
    "one word": ("a.json", "3", "no log_history"),
    "binary": ("a.log", "step:1\0 - actor", "is binary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_log_of_one_run_is_one_line(tmp_path: Path, case: str) -> None:
    name, text, words = REFUSED[case]
    (tmp_path / name).write_text(text)
    refused(DataError, words, read_log, tmp_path / name)


@pytest.mark.parametrize(
    ("restarts", "repeats", "rows", "mixed"),
    [
        (3, 0, 12, False),
        (4, 0, 12, True),
        (20, 0, 100, False),  # a fifth
        (21, 0, 100, True),
        (0, 3, 12, False),
        (0, 4, 12, True),
        (0, 5, 100, False),  # a twentieth
        (0, 6, 100, True),
    ],
)
def test_few_rows_of_one_run_go_back_or_contradict(restarts, repeats, rows, mixed) -> None:
    """Steps 1, 3, then 2, 4 after a restart, and so on; repeats are of the last step."""
    steps = [step for n in range(1, restarts + 2) for step in (n, n + 2)]
    steps += range(restarts + 4, restarts + 4 + rows - repeats - len(steps))
    made = [{"step": step, "reward": n} for n, step in enumerate(steps + repeats * steps[-1:])]
    if mixed:
        named = rf"steps go back {restarts} times, {repeats} rows contradict"
        refused(DataError, named, to_log, made, "log")
    else:
        assert len(to_log(made, "log").table) == len(made) - restarts - repeats
        assert len(made) == rows


def test_paths_that_are_no_log(tmp_path: Path) -> None:
    for name in ("none", "two", "runs/seed0", "runs/seed1", "hf/checkpoint-best"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("two/a.log", "two/b.log", "runs/seed0/metrics.jsonl", "runs/seed1/metrics.jsonl"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "hf/checkpoint-best/trainer_state.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        ("missing", "does not exist"),
        ("loop", "does not exist"),
        ("pipe", "is no file"),
        ("none", "no metrics.jsonl, trainer_state.json"),
        ("hf", "no metrics.jsonl, trainer_state.json"),
        ("two", "a.log, b.log"),
        ("runs", "seed0/metrics.jsonl, seed1/metrics.jsonl"),
    ):
        refused(DataError, words, read_log, tmp_path / path)
    refused(DataError, "does not exist", read_log, tmp_path / "missing", format="tensorboard")
    refused(ConfigError, 'unknown format "jason"', read_log, tmp_path / "two/a.log", format="jason")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_log_of_any_encoding_packed_or_not(tmp_path: Path, encoding: str, packed: bool) -> None:
    """PowerShell writes UTF-16; what is packed need not be named so."""
    text = FIRST.replace("\n", "\r\n")
    content = ("\ufeff" if encoding.endswith("be") else "").encode(encoding) + text.encode(encoding)
    (tmp_path / "out.log").write_bytes(gzip.compress(content) if packed else content)
    assert read_log(tmp_path / "out.log").column("clip_fraction") == pytest.approx(CLIP)


def test_the_folder_of_a_run_of_ours(smoke_runs: Path) -> None:
    log = read_log(smoke_runs / "smoke/grpo/seed0")
    assert log.framework == "llds" and log.checkpoints
    updates = log.column("updates_per_rollout")
    assert np.isfinite(updates).all() and len(set(updates)) == 1


def test_a_row_without_a_step_is_left_out_of_a_log_that_has_steps() -> None:
    rows = [{"step": 10 * n, "reward": 0.1 * n} for n in range(1, 6)]
    del rows[2]["step"]
    log = to_log(rows, "log")
    assert log.table["step"].tolist() == [10, 20, 40, 50]
    assert "1 of 5 rows name no step and are left out" in log.notes
    again = to_log([{"step": s, "reward": 0.5} for s in (1, 2, 1, 2)], "log")
    assert again.notes == ("after a restart steps came again: 2 earlier rows are left out",)
    for row in rows[:4]:
        row["step"] = row.get("step", 0) + 0.5  # no whole number
    assert to_log(rows, "log").table["step"].tolist() == [1, 2, 3, 4, 5]
