"""Held-out evaluation of a checkpoint, and asking it a single question.

Every question counts, none is dropped; questions are spread evenly over the kinds. Greedy decoding
is the headline; beside it the same with the search failures of training, and sampled decoding.

    evaluation-<checkpoint>-<split>.json              the scores
    held-out/<checkpoint>-<digits>/predictions.jsonl  every answer
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.config.seeding import torch_generator
from llds_core.errors import ConfigError
from llds_core.evaluation.evaluate import MODES, SAMPLED, Evaluation, EvaluationPlan
from llds_core.evaluation.models import open_model
from llds_core.evaluation.predictions import Row
from llds_core.evaluation.scores import choose_questions, drawn, entry, too_long
from llds_core.files import write_json
from llds_core.rollout.environment import build_environment, build_world, insisting
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.rewards import score
from llds_core.rollout.samplers import TransformersSampler
from llds_core.runs import Run
from llds_core.worlds.records import Question


def evaluate_run(
    run: Run, checkpoint: str = "best", split: Literal["dev", "test"] = "test"
) -> Path:
    """Score a checkpoint of a run on held-out questions and write
    `evaluation-<checkpoint>-<split>.json` beside it. Answers that are there are not made again.
    """
    config, folder = run.config, run.checkpoint(checkpoint)
    environment = build_environment(insisting(config)).for_evaluation
    samples = config.evaluation.samples
    plan = EvaluationPlan(
        limit=config.evaluation.questions,
        modes=MODES if samples else MODES[:2],
        samples=max(1, samples),
        split=split,
        seed=config.world.seed,
        draws="batch",
    )
    questions = choose_questions(getattr(environment.world, split), plan.limit, plan.seed)
    if not questions:
        raise ConfigError(
            f"the {split} split of this world holds no question: raise world.{split}_fraction"
        )
    model = open_model(folder, config.training.dtype)
    evaluation = Evaluation(environment, model, plan, questions)
    beside = run.path if run.path.is_dir() else folder
    rows = evaluation.answer(beside / "held-out" / f"{folder.name}-{evaluation.digits}")
    scores = {
        "experiment": config.name,
        "seed": run.seed,
        "checkpoint": folder.name,
        "model_digest": model.digest,
        "max_searches": environment.config.rollout.max_searches,
        "split": split,
        "questions": len(questions),
        "too_long": too_long(rows),
        "results": held_out_scores(rows, questions),
    }
    target = beside / f"evaluation-{Path(checkpoint).name}-{split}.json"
    write_json(target, scores)
    return target


def evaluate_ends(run: Run) -> Iterator[Path]:
    """Score the best and the last checkpoint of a run on test questions; where it is longer than
    its profile plans and keeps all checkpoints, those of the planned steps too, to be compared with
    runs of that length.
    """
    checkpoints = ["best", "last"]
    training, planned = run.config.training, load_experiment(run.config.name).training.steps
    keeps_all = training.keep_checkpoints * training.save_every >= training.steps
    if training.steps > planned and keeps_all:
        checkpoints += [f"best-{planned}", f"last-{planned}"]
    for checkpoint in checkpoints:
        yield evaluate_run(run, checkpoint)


def held_out_scores(
    rows: Sequence[Row], questions: Sequence[Question]
) -> dict[str, dict[str, dict[str, float]]]:
    """Exact match by mode (`sampled_<k>` for the k-th sample) and by question kind, by hops and
    over `all`: `n`, `em`, `low`, `high` (95 % bootstrap), `searches`.
    """
    hops = {question.id: f"{question.metadata['hops']}-hop" for question in questions}
    by_mode: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        mode = f"{SAMPLED}_{row['sample']}" if row["mode"] == SAMPLED else row["mode"]
        for name in ("all", hops[row["id"]], row["benchmark"]):
            by_mode[mode][name].append(row)
    return {
        mode: {name: _entry(group) for name, group in sorted(groups.items())}
        for mode, groups in by_mode.items()
    }


def _entry(rows: Sequence[Row]) -> dict[str, float]:
    found, n = entry(*drawn(rows)), len({row["id"] for row in rows})
    names = {"em": "em", "low": "em_low", "high": "em_high", "searches": "searches"}
    return {"n": n} | {ours: found[name] for ours, name in names.items()}


def unknown_places(config: ExperimentConfig, question: str) -> str:
    """One line where the atlas holds nothing that a question names; else empty."""
    if config.world.name != "atlas":
        return ""
    world, asked = build_world(config), question.casefold()
    if any(passage.title.casefold() in asked for passage in world.passages):
        return ""
    examples = " ".join(example.question for example in world.dev[:2])
    return (
        f"none of the {len(world.passages)} passages of this world is about anything named in the "
        f"question, so no agent can know the answer; ask, for example: {examples}"
    )


def ask_each(
    run: Run, question: str | Question, checkpoints: Sequence[str], *, temperature: float = 0.0
) -> list[Trajectory]:
    """Let checkpoints of a trained agent answer `question` in one world: their trajectories, scored
    when the question comes with accepted answers.
    """
    if isinstance(question, str) and not question.strip():
        raise ConfigError(
            'the question is empty: write it in quotes, e.g. "which continent is Homs in?"'
        )
    config, folders = run.config, [run.checkpoint(checkpoint) for checkpoint in checkpoints]
    environment = build_environment(insisting(config)).for_evaluation
    asked = Question("ask", question, ("?",)) if isinstance(question, str) else question
    trajectories = []
    for folder in folders:
        model, tokenizer = open_model(folder, config.training.dtype).load()
        loop = environment.rollout_loop(tokenizer, seed=run.seed, failure_rate=0.0)
        generator = torch_generator(run.seed, "ask", device=str(model.device))
        sampler = TransformersSampler(model, tokenizer, generator, temperature=temperature)
        trajectories += loop.run([(asked, 0)], sampler).trajectories
    if asked is question:
        for trajectory in trajectories:
            score(trajectory, config.reward)
    return trajectories
