"""Every setting of a run, with its default, its meaning and where the default comes from.

[P] marks a value from the paper (arXiv:2605.05940), [D] a default chosen here because the paper does not say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from npd_ascend.config.marks import FILE, SPEED, TEMPLATE, Only, Younger

Fraction01 = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Paths = Annotated[int, Field(ge=0, le=126)]  # path numbers are stored in 8 bits


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class RunConfig(Section):
    """Where a run lives and what makes it reproducible."""

    dir: Annotated[Path, SPEED]
    """Run directory; made when missing, resumed when it holds a run of the same configuration."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Root of every random choice: sampling seeds, packing order."""
    recipe: str = "npd"
    """What happens in which order: a file of ``recipes/``, or ``module:function``."""


class ModelsConfig(Section):
    """The two checkpoints, as Hugging Face folders (config.json, *.safetensors, tokenizer)."""

    teacher: Path
    student: Path
    """Start of the student; in NPD an SFT checkpoint [P]."""
    tokenizer: Path | None = None
    """Folder of the tokenizer; the student's own when empty."""
    trust_remote_code: bool = False
    """Lets transformers run the tokenizer code of a checkpoint. Off unless asked for."""


class DataConfig(Section):
    """Prompts, in the shapes that docs/data.md lists."""

    prompts: list[Path]
    """Files (JSON lines or arrays, CSV, Parquet, Arrow), folders of them, ``folder:split``, or data sets in the cache
    of the Hugging Face hub: ``hf:org/name``, ``hf:org/name/config:split``."""
    limit: Count | None = None
    """Use only this many prompts, the first ones."""
    slice: Annotated[Count | None, Younger()] = None
    """Prompts of a generation: none comes again before the others have come, in an order that follows from
    ``run.seed``; None: all of them."""
    prompt_field: str = "prompt"
    """Text of the user's turn, or a list of chat messages. Rows without a field ``prompt`` are read by the names of
    their fields if this is not set: messages, conversations, instruction, question, ... (docs/data.md)."""
    response_field: str | None = None
    """Reference answer, for ``rollout.source: reference`` and ``train.loss.ce_labels: reference``. None: the last turn
    of a conversation that ends with the assistant's, else a field that is called as one (docs/data.md)."""
    reference_turns: Annotated[Literal["auto", "last", "all"], Younger()] = "auto"
    """What of a conversation ``rollout.source: reference`` trains on: its ``last`` turn; ``all`` turns of the
    assistant, while those of users and tools between them are masked; ``auto``: all where tools take part."""
    labels_field: str | None = None
    """Optional text with one label token per response token (labels that differ from the input)."""
    answer_field: str | None = None
    """What the answer checker compares with."""
    task: Annotated[str | None, Younger()] = None
    """A file of ``tasks/known`` (choice, gsm8k, humaneval, ifeval, math, mbpp), or ``module:function`` of one's own:
    how rows are read, what is asked, what is right and what judges it, in place of prompt_field and answer_field."""
    template: Literal["auto", "chat", "raw"] = "auto"
    """``chat``: the tokenizer's chat template; ``raw``: the prompt unchanged; ``auto``: chat when there is one."""
    chat_template: Annotated[str, Field(min_length=1), TEMPLATE] = "auto"
    """Which chat template renders the input of both models: ``student``, ``teacher``, the path of a template's file or
    of a tokenizer's folder, or ``auto``: the only one there is; of two that differ, the teacher's where the student is
    a base model (its stop tokens lack its template's end of turn, as Qwen2.5's base models' do), the student's where
    only the default system turn differs; else the run asks for this setting."""
    system: str | None = None
    """System turn; openPangu's template emits an empty one when none is given."""
    suffix: str | None = None
    """Put behind the last user's turn; openPangu-Embedded reads ``" /no_think"`` (answer at once) and
    ``" /auto_think"`` (the model decides) there. Checkers and reports see the prompt without it."""
    max_prompt_tokens: Count = 2048
    too_long: Literal["drop", "refuse"] = "drop"
    """Prompts over ``max_prompt_tokens``: left out and counted, or an error."""


class WorkerConfig(Section):
    """When the workers of a stage leave, and when they are given up."""

    keep_alive: Annotated[bool | Literal["auto"], SPEED] = "auto"
    """Keeps engine, weights and compiled graphs for the next generation: ``true`` always, which takes memory beside
    that of the other stages; ``auto`` until another stage wants the same NPUs; ``false`` not at all."""
    max_failures: Annotated[Natural, SPEED] = 3
    """A dead or hanging worker is replaced so often before the run stops."""
    hang_seconds: Annotated[Positive, SPEED] = 900.0
    """A worker that shows no progress for so long is taken for dead."""
    start_seconds: Annotated[Positive, SPEED] = 3600.0
    """The same while it starts, loads and compiles."""


class RolloutConfig(WorkerConfig):
    """The student's snapshot answers every prompt on vLLM."""

    source: Literal["student", "reference", "teacher"] = "student"
    """Who answers: ``student`` is NPD, ``reference`` the data itself (SFT, supervised KD), ``teacher`` SeqKD."""
    max_new_tokens: Count = 1024
    greedy: bool = True
    """One greedy path a prompt [P]."""
    samples: Paths = 0
    """Sampled paths a prompt beside the greedy one; 2 in the paper's multi-path setting [P]."""
    temperature: Positive = 1.0
    """Of sampled paths; 1.0 keeps the lag estimator unbiased [D]."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Natural = 0
    """0 means no restriction."""
    stop_token_ids: list[Natural] = []
    """Beside the end-of-sequence ids of the checkpoint."""
    workers: Annotated[Count, SPEED] = 1
    """Engines that share the prompts; on Ascend one a device or tensor-parallel group."""
    tensor_parallel: Annotated[Count, SPEED] = 1
    max_num_seqs: Annotated[Count, SPEED] = 128
    shard_size: Count = 2048
    """Prompts a shard: what a kill can cost is the tokens in flight, what a checksum guards is a shard."""
    kv_cache_gib: Annotated[Positive, SPEED] = 1.0
    """CPU only: room for the KV cache."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0), SPEED] = 0.3
    """Share of device memory vLLM may take; 0.9 when it has the device for itself."""
    enforce_eager: Annotated[bool | None, SPEED] = None
    """None: eager on CPU, graphs on Ascend."""
    start_seconds: Annotated[Positive, SPEED] = 900.0
    """The same while it starts, loads and compiles."""

    @model_validator(mode="after")
    def _some_path(self) -> RolloutConfig:
        if not self.greedy and not self.samples:
            raise ValueError("greedy is false and samples is 0: no path is left; set samples: 1 or greedy: true")
        return self

    @property
    def paths(self) -> int:
        """Answers a prompt."""
        return (int(self.greedy) + self.samples) if self.source != "reference" else 1


class AnnotateConfig(WorkerConfig):
    """Packed prefill over all rollouts: top-k, logZ, log-prob, entropy, NLLs."""

    k: Annotated[Count, Only("topk")] = 10
    """Stored logits a token [P]."""
    row_length: Annotated[int, Field(ge=16, multiple_of=16)] = 32768
    """Tokens a packed row [P]."""
    micro_batch: Count = 1
    """Rows a forward pass."""
    vocab_chunk_rows: Count = 1024
    """Positions whose logits over the whole vocabulary stand in memory at once."""
    workers: Annotated[Count, SPEED] = 1
    """Groups of processes that share the shards; each group holds the whole model."""
    tensor_parallel: Annotated[Count, SPEED] = 1
    """Devices over which the teacher is cut; there are ``workers`` such groups. The student is cut over no more than in
    training, and takes more groups instead."""
    value_bits: Annotated[int, Field(ge=6, le=16), Only("topk")] = 10
    """Bits a stored log-prob; see store/topk_codec.py for the error of each width."""
    student_nll: Annotated[Literal["prefill", "rollout"], Only("scores_student")] = "prefill"
    """Conditioned NLL of the student: by its own prefill (deterministic), or from the rollout's log-probs (free)."""


class SelectConfig(Section):
    """Which samples are trained on, and with what weight."""

    filter: str = "delta_ifd"
    """A file of ``select/filters`` (none, delta_ifd, ppl_weighted, student_ifd, teacher_ifd, fire), or
    ``module:function`` of one's own."""
    ifd_form: Literal["loss_ratio", "ppl_ratio"] = "loss_ratio"
    """L(y|x)/L(y) [P], or exp(L(y|x) − L(y)) (Superfiltering)."""
    lower: float | Literal["auto"] | None = "auto"
    """Keep only values >= lower; null: no lower bound; auto: the filter's own, 0 for delta_ifd [P]."""
    upper: float | Literal["auto"] | None = "auto"
    """Keep only values <= upper; null: no upper bound; auto: the filter's own, δ = 0.8 for delta_ifd [P]."""
    lower_quantile: Fraction01 | None = None
    """Takes the place of ``lower``: that quantile of the values over this generation."""
    upper_quantile: Fraction01 | None = None
    """Takes the place of ``upper``."""
    keep_truncated: bool = True
    """Samples that ran into max_new_tokens stay in."""
    warn_keep_below: Annotated[Fraction01, SPEED] = 0.85
    """A keep rate under this (the paper keeps 96 %) is shown as a warning in the run and its report."""

    @model_validator(mode="after")
    def _bounds(self) -> SelectConfig:
        for name in ("lower", "upper"):
            if getattr(self, f"{name}_quantile") is not None and isinstance(getattr(self, name), float):
                raise ValueError(f"{name} and {name}_quantile are both set; keep one")
        if isinstance(self.lower, float) and isinstance(self.upper, float) and self.lower > self.upper:
            raise ValueError(f"lower ({self.lower}) is above upper ({self.upper}): nothing could be kept")
        return self


class Part(Section):
    """One of the rewards that an answer's value is the weighted sum of."""

    weight: float = 1.0
    data: Annotated[Path | None, FILE] = None
    """JSON file that it needs (the map of the maze)."""
    options: dict[str, bool | int | float | str] = {}
    """Its keywords, e.g. {limit: 1024, buffer: 256} of ``length``."""


class AdvantageConfig(Section):
    """From the values of a group, the answers to one prompt, to the advantage of each."""

    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is taken off a value: the mean of its group, or that of the others in it."""
    scale: Literal["none", "std"] = "none"
    """``std`` divides by the standard deviation of the group, as the first GRPO did."""
    keep_equal: bool = False
    """Groups whose values are all equal stay, though they teach nothing, and count in the mean over a batch."""


class RewardConfig(Section):
    """What answers are worth; read by recipes that have a stage ``reward``."""

    parts: dict[str, Part] = {}
    """Rewards by name, with their weights: files of ``tasks/rewards`` or ``module:function``, e.g. {math: 1, length:
    {weight: 0.2, options: {limit: 1024, buffer: 256}}}; ``task`` is the reward of ``data.task``."""
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    workers: Annotated[Count | None, SPEED] = None
    """Answers that are judged at once; None: as there are cores. More help where a service judges."""

    @field_validator("parts", mode="before")
    @classmethod
    def _numbers_are_weights(cls, parts: Any) -> Any:
        number = (int, float)
        return (
            {k: {"weight": v} if isinstance(v, number) else v for k, v in parts.items()}
            if isinstance(parts, dict)
            else parts
        )


class PackConfig(Section):
    """Kept samples into fixed rows."""

    row_length: Annotated[int, Field(ge=16, multiple_of=16)] = 32768
    """Tokens a row [P]."""
    too_long: Literal["truncate", "drop", "refuse"] = "truncate"
    """Samples over a row's length: cut at its end, left out, or an error; counted and reported in each case."""


class LossConfig(Section):
    """(1 − λ)·CE + λ·KD, paper eq. (1), or another weighted sum of terms."""

    kd_weight: Fraction01 = 0.9
    """λ [P]."""
    divergence: str = "forward_kl"
    """A registered divergence over the stored support; forward_kl is eq. (2). ``a + b`` sums two."""
    topk_norm: Literal["teacher", "raw", "both", "tail"] = "teacher"
    """How the truncated distributions are normalised; the paper leaves it open [D: teacher]."""
    ce_labels: Literal["rollout", "reference", "none"] = "rollout"
    """Targets of CE: the student's own tokens, the data's labels, or no CE at all."""
    token_weight: str = "none"
    """A registered token weight."""
    terms: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """Registered terms with their weights, e.g. {cross_entropy: 0.1, jsd:0.3: 0.9}, in the place of kd_weight and
    divergence; a term of weight 0 is not computed."""
    mean: Annotated[Literal["token", "sequence", "constant"], Younger()] = "token"
    """What a batch's loss is the mean over: its tokens; its samples, each the mean of its own tokens; or its samples,
    each the sum of its tokens over ``mean_length``."""
    mean_length: Annotated[Count | None, Younger()] = None
    """Tokens; of ``mean: constant`` (Dr. GRPO: rollout.max_new_tokens)."""

    @model_validator(mode="after")
    def _one_form(self) -> LossConfig:
        fields = type(self).model_fields
        if self.terms and any(getattr(self, name) != fields[name].default for name in ("kd_weight", "divergence")):
            raise ValueError("terms is set beside kd_weight or divergence; keep one form")
        if (self.mean == "constant") != (self.mean_length is not None):
            raise ValueError("mean: constant and mean_length go together; set both or neither")
        if self.terms and self.ce_labels == "none" and self.terms.get("cross_entropy"):
            raise ValueError("ce_labels is none but terms names cross_entropy; keep one")
        return self

    @property
    def empty(self) -> bool:
        """Whether nothing is left to train on."""
        if self.terms:
            return not any(self.terms.values())
        return self.ce_labels == "none" and self.kd_weight == 0


class TrainConfig(WorkerConfig):
    """Training on packed rows."""

    epochs: Positive = 10.0
    """Passes over the current generation's rows, summed over generations [P]."""
    lr: Positive = 1e-5
    min_lr: Annotated[float, Field(ge=0.0)] = 1e-6
    """End of the one cosine over the whole run; a sparse update does not restart it [P]."""
    warmup: Fraction01 = 0.0
    """Share of the run with a linear rise."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    beta1: Fraction01 = 0.9
    beta2: Fraction01 = 0.95
    eps: Positive = 1e-8
    clip: Positive = 1.0
    """Global gradient norm [P]."""
    global_batch: Count = 64
    """Rows an optimiser step; 64 rows of 32,768 are the paper's 2M tokens."""
    micro_batch: Count = 1
    """Rows a device and forward pass; the rest of the global batch is accumulated."""
    data_parallel: Count = 1
    tensor_parallel: Count = 1
    """Devices over which each copy of the model is cut."""
    context_parallel: Count = 1
    """Copies that share the positions of each row, for long rows; data_parallel x context_parallel copies in all. A
    divisor of the key-value heads (of a tensor-parallel share) and of pack.row_length."""
    optimizer_sharding: bool = False
    """Cuts gradients, moments and float32 weights over the copies."""
    loss: LossConfig = Field(default_factory=LossConfig)
    vocab_chunk_rows: Count = 1024
    """Positions whose logits over the whole vocabulary stand in memory at once."""
    recompute: bool = False
    """Computes the activations of each layer again in the backward pass: a third more work, memory of one layer."""
    checkpoint_every: Annotated[Natural, SPEED] = 0
    """Optimiser steps between checkpoints, beside those at the end of each epoch; 0: only there."""
    keep_checkpoints: Annotated[Count, SPEED] = 2

    @model_validator(mode="after")
    def _batches(self) -> TrainConfig:
        if self.global_batch % (self.micro_batch * self.data_parallel):
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch x data_parallel "
                f"= {self.micro_batch} x {self.data_parallel}"
            )
        if self.optimizer_sharding and self.data_parallel * self.context_parallel == 1:
            raise ValueError(
                "optimizer_sharding cuts over data_parallel x context_parallel, which is 1; use tensor_parallel instead"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        return self

    @property
    def ranks(self) -> int:
        """Processes that train together, each on a device."""
        return self.data_parallel * self.context_parallel * self.tensor_parallel


class SyncConfig(Section):
    """When the snapshot that answers the prompts is refreshed."""

    policy: str = "static"
    """A file of ``sync/policies`` (static, kl), or ``module:Class`` of one's own."""
    refreshes: Natural = 1
    """static: their number, spread evenly over the epochs [P: 1]; kl: their largest number."""
    at_epochs: list[Positive] | None = None
    """static: exactly here, in place of ``refreshes``."""
    epsilon: Positive = 0.1
    """kl: refresh when the measured lag reaches this [P: 0.10]."""
    lead: Annotated[float, Field(ge=0.0)] = 0.0
    """Epochs that training goes on with the old data while the new snapshot already answers."""
    probe_samples: Count = 256
    """Samples of the current generation on which lag is measured."""
    lag_every: Natural = 50
    """Optimiser steps between lag measurements; 0: only at the ends of a generation."""


class EvaluateConfig(Section):
    """Exact-match accuracy on held-out prompts, through vLLM."""

    prompts: list[Path] = []
    """Held-out rows in the format of ``data``; empty: no evaluation."""
    limit: Count | None = None
    checker: str = "exact"
    """A file of ``tasks/rewards`` (exact, number, math, choice, rules, ifeval, code, maze), or ``module:function`` of
    one's own: right is what it gives 1. Left at exact, ``data.task`` says it, if there is one."""
    checker_data: Annotated[Path | None, FILE] = None
    """JSON file a checker needs (the map of the maze)."""
    samples: Paths = 0
    """Sampled answers a prompt for pass@n; 0: greedy only."""
    temperature: Positive = 0.8
    max_new_tokens: Count | None = None
    """None: as in rollout."""
    at_refresh: bool = True
    """Evaluates the snapshot at each refresh beside the start and the end."""
    every: Annotated[Count, Younger()] = 1
    """At each refresh whose number is a multiple of this."""


class Split(Section):
    """Devices of a node that serve one side each, so that both work at the same time."""

    rollout: Count
    """For rollouts, evaluation and annotation."""
    train: Count


class DeviceConfig(Section):
    """What the stages run on."""

    target: Literal["auto", "cpu", "ascend"] = "auto"
    """auto: ascend when an NPU is visible."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto: float32 on CPU, bfloat16 on Ascend."""
    count: Count | None = None
    """Devices of a node; None: all that are visible. On CPU cores stand in for devices."""
    placement: Annotated[
        Annotated[Literal["shared"], Tag("shared")] | Annotated[Split, Tag("split")],
        Discriminator(lambda v: "split" if isinstance(v, dict | Split) else "shared"),
    ] = "shared"
    """``shared``: each stage has all devices in turn; or ``{rollout: 6, train: 2}``, devices of a node: with
    ``sync.lead`` the next rollouts and their annotation then run beside training."""
    max_device_memory: Annotated[str, Field(pattern=r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]+)GB$")] = "58GB"
    """What annotation and training may take of an NPU; MindSpore reads gigabytes only, written 58GB."""
    deterministic: bool | None = None
    """Kernels and collectives that give the same bits every time. None: on the CPU, where a resumed run is then the run
    that was not stopped, bit for bit; not on Ascend, where they are slower."""


class ReportConfig(Section):
    """What is written beside report.html and metrics.jsonl."""

    monitors: list[str] = []
    """Programs that get the curves while the run goes on: files of ``monitors/backends`` (tensorboard, wandb, swanlab)
    or ``module:function``; ``wandb:PROJECT`` names the project."""
    samples: Natural = 6
    """Answers shown with the teacher's entropy."""


class Config(Section):
    """A whole run."""

    run: RunConfig
    models: ModelsConfig
    data: DataConfig
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    reward: Annotated[RewardConfig, Younger()] = Field(default_factory=RewardConfig)
    pack: PackConfig = Field(default_factory=PackConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    device: Annotated[DeviceConfig, SPEED] = Field(default_factory=DeviceConfig)
    report: Annotated[ReportConfig, SPEED] = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.train.loss.ce_labels == "reference" and self.rollout.source != "reference":
            raise ValueError(
                "train.loss.ce_labels: reference needs rollout.source: reference "
                "(labels exist only for the data's own answers)"
            )
        if self.train.loss.empty:
            raise ValueError(
                "train.loss.ce_labels is none and kd_weight is 0, or all terms are: nothing is left to train on"
            )
        if self.pack.row_length % self.train.context_parallel:
            raise ValueError(
                f"pack.row_length {self.pack.row_length} is not a multiple of train.context_parallel "
                f"{self.train.context_parallel}; change one of them"
            )
        if self.evaluate.prompts and not (self.data.answer_field or self.data.task):
            raise ValueError("evaluate.prompts is set but data.answer_field is not: there is nothing to compare with")
        return self

    @property
    def annotate_student(self) -> AnnotateConfig:
        """``annotate`` as it goes for the student: on the same devices, in the largest number of groups."""
        a = self.annotate
        each = min(a.tensor_parallel, self.train.tensor_parallel)
        return a.model_copy(update={"tensor_parallel": each, "workers": a.workers * a.tensor_parallel // each})
