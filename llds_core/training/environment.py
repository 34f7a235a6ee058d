"""World and search engine of a configuration, built the same way for training, evaluation and
demonstrations.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llds_core.config import ExperimentConfig, RetrievalConfig, WorldConfig
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.loop import RolloutLoop
from llds_core.worlds.atlas import World, build_atlas


@dataclass(frozen=True)
class Environment:
    """A world and its search engine."""

    config: ExperimentConfig
    world: World
    retriever: BM25Retriever

    def rollout_loop(
        self, tokenizer: PreTrainedTokenizerBase, *, seed: int, failure_rate: float
    ) -> RolloutLoop:
        """Return a loop over this world whose searches fail at `failure_rate`, keyed by `seed`."""
        failing = FailingRetriever(
            self.retriever, failure_rate=failure_rate, passages=self.world.passages, seed=seed
        )
        return RolloutLoop(
            tokenizer, failing, self.config.rollout, top_k=self.config.retrieval.top_k, seed=seed
        )


_WORLDS = {"atlas": build_atlas}
_RETRIEVERS = {"bm25": BM25Retriever}


def build_environment(config: ExperimentConfig) -> Environment:
    """Build world and search engine of `config`."""
    world = build_world(config.world)
    return Environment(config, world, build_retriever(config.retrieval, world))


def build_world(settings: WorldConfig) -> World:
    """Build the world of `settings`; deterministic in its seed."""
    return _WORLDS[settings.name](
        cities=settings.cities,
        countries=settings.countries,
        seed=settings.seed,
        dev_fraction=settings.dev_fraction,
        test_fraction=settings.test_fraction,
    )


def build_retriever(config: RetrievalConfig, world: World) -> BM25Retriever:
    """Index the passages of `world`."""
    return _RETRIEVERS[config.backend](world.passages, title_weight=config.title_weight)
