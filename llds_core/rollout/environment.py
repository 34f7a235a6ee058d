"""World and search engine of a configuration, for training, evaluation and demonstrations alike."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llds_core.config import ExperimentConfig, RolloutConfig
from llds_core.retrieval import (
    BM25Retriever,
    DenseRetriever,
    FailingRetriever,
    PassageFile,
    Retriever,
    RetrieverClient,
    ServiceIdentity,
    passages_hash,
)
from llds_core.retrieval.index import index_path
from llds_core.rollout.loop import RolloutLoop
from llds_core.runs.identity import index_command
from llds_core.worlds import World, build_atlas, build_files_world
from llds_core.worlds.question_sets import CORPUS_FILE, published_prompt


@dataclass(frozen=True)
class Environment:
    """A world and its search engine."""

    config: ExperimentConfig
    world: World
    retriever: Retriever

    @cached_property
    def template(self) -> str:
        """Wording of the prompts: a name that `prompt_text` knows, or a text with `{question}`."""
        if self.config.rollout.prompt == "data":
            return published_prompt(Path(self.config.data.folder))
        return self.config.rollout.prompt

    @property
    def for_evaluation(self) -> "Environment":
        """The same with the searches that `evaluation.max_searches` allows, if it says so."""
        searches = self.config.evaluation.max_searches
        if searches is None:
            return self
        rollout = replace(self.config.rollout, max_searches=searches)
        return replace(self, config=replace(self.config, rollout=rollout))

    def failing(self, *, seed: int, failure_rate: float) -> FailingRetriever:
        """Its search engine, whose searches fail at `failure_rate`, keyed by `seed`."""
        return FailingRetriever(self.retriever, failure_rate, self.world.passages, seed)

    def rollout_loop(
        self,
        tokenizer: PreTrainedTokenizerBase,
        limits: RolloutConfig | None = None,
        *,
        seed: int,
        failure_rate: float,
        **options: Any,
    ) -> RolloutLoop:
        """Return a loop over this world whose searches fail at `failure_rate`, keyed by `seed`.
        `limits` replace those of the configuration; `options` are those of `RolloutLoop`.
        """
        failing = self.failing(seed=seed, failure_rate=failure_rate)
        limits, top_k = limits or self.config.rollout, self.config.retrieval.top_k
        usual: dict[str, Any] = {
            "template": self.template,
            "lock_step": self.config.sampler.lock_step,
        }
        return RolloutLoop(tokenizer, failing, limits, top_k, **usual | options)


def insisting(config: ExperimentConfig) -> ExperimentConfig:
    """The same, with searches that must be answered: for scores, where a lost search would count
    as a wrong answer.
    """
    return replace(config, service=replace(config.service, on_failure="raise"))


def build_environment(config: ExperimentConfig) -> Environment:
    """Build world and search engine of `config`."""
    world = build_world(config)
    return Environment(config, world, build_retriever(config, world))


def build_served(config: ExperimentConfig) -> tuple[Retriever, ServiceIdentity]:
    """The search engine of `config` for a service, and what the service says it is."""
    environment = build_environment(config)
    passages = environment.world.passages
    identity = ServiceIdentity(
        index=environment.retriever.identity,
        corpus=passages_hash(passages)[:16],
        backend=config.retrieval.backend,
        passages=len(passages),
    )
    return environment.retriever, identity


def build_world(config: ExperimentConfig) -> World:
    """Build the world of `config`; deterministic in `world.seed`."""
    settings = config.world
    if settings.name == "files":
        return build_files_world(
            Path(config.data.folder),
            passages=_corpus(config),
            seed=settings.seed,
            dev_fraction=settings.dev_fraction,
        )
    return build_atlas(
        cities=settings.cities,
        countries=settings.countries,
        seed=settings.seed,
        dev_fraction=settings.dev_fraction,
        test_fraction=settings.test_fraction,
    )


def build_retriever(config: ExperimentConfig, world: World) -> Retriever:
    """Open the search engine over the passages of `world`. A dense index is only opened, except
    that of the atlas: it is small, and built when there is none.
    """
    if config.retrieval.backend == "dense":
        command = None if world.name == "atlas" else index_command(config)
        folder = index_folder(config, world)
        return DenseRetriever(world.passages, config.dense, folder, command=command)
    if config.retrieval.backend == "server":
        corpus = passages_hash(world.passages)[:16]
        return RetrieverClient(config.service, corpus=corpus, profile=config.profile)
    return BM25Retriever(world.passages, title_weight=config.retrieval.title_weight)


def index_folder(config: ExperimentConfig, world: World) -> Path:
    """Where the dense index over `world` is, or will be; see `index_path`. Indexes of several kinds
    share a folder, hence its vectors, one after the other.
    """
    return index_path(config.dense, world.name, passages_hash(world.passages))


def corpus_identity(config: ExperimentConfig) -> str:
    """Name of the corpus of `config`, as a search service gives it; questions are not read."""
    passages = _corpus(config) if config.world.name == "files" else build_world(config).passages
    return passages_hash(passages)[:16]


def _corpus(config: ExperimentConfig) -> PassageFile:
    return PassageFile(Path(config.data.folder) / CORPUS_FILE, config.data.cache)
