"""What the inputs of a run are refused for, each as one function: ``run`` and its stages call them, and so does
``doctor``, which therefore cannot say ``ok`` of what a run would not take."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.data.compat import Agreement, agree, check_pair
from npd_ascend.data.job import PrepareJob
from npd_ascend.data.sources import expand
from npd_ascend.data.stage import look
from npd_ascend.errors import UserError
from npd_ascend.models.mapping import heads_of, shard_of
from npd_ascend.models.shapes import planned_spec
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.monitors.registry import MONITORS
from npd_ascend.objectives.registry import asked, summands
from npd_ascend.recipes import asks
from npd_ascend.rollout.servable import check_servable
from npd_ascend.select.registry import FILTERS
from npd_ascend.sync.registry import check as check_sync
from npd_ascend.tasks.judge import check_rewards, needs_answers
from npd_ascend.tasks.registry import TASKS, Checker

FIRST_ROWS = 256
"""Rows of each prompt file that ``check_prompts`` looks at."""
NOT_READ = "configs, tokenizers, and names, shapes and sizes of all tensors; their values were not read"
"""What ``check_models`` covers."""


def check_names(config: Config) -> None:
    """Names that the schema cannot know.

    Raises:
        UserError: an unknown filter, loss term, token weight, sync policy, monitor or checker, unusable data of the
            checker, or settings that the sync policy cannot follow.
    """
    FILTERS.find(config.select.filter)
    check_rewards(config)
    _check_loss(config)
    check_sync(config)
    for name in config.report.monitors:
        MONITORS.parse(name)
    if config.data.task is not None:
        TASKS.find(config.data.task)
    if config.evaluate.prompts:
        Checker.of(config)


def _check_loss(config: Config) -> None:
    """Terms and token weight exist, and what they read will be there."""
    read = asked(config.train.loss)
    if "rollout_logprobs" in read and config.rollout.source == "reference":
        raise UserError(
            "train.loss: a term or token weight reads rollout log-probs, which reference answers lack; "
            "change it or rollout.source"
        )
    if "advantages" in read and not config.reward.parts:
        raise UserError(
            "train.loss: a term reads advantages, and there are no rewards that they could come of; name some in "
            "reward.parts and set run.recipe: grpo, or leave the term out"
        )
    _check_sampled(config)


def _check_sampled(config: Config) -> None:
    """Ratios of probabilities and policy gradients need answers drawn from the whole distribution, at temperature 1."""
    rollout = config.rollout
    ratios = [s.term.name for s in summands(config.train.loss) if s.term.needs_samples]
    if not ratios:
        return
    for key, now, must in (
        ("greedy", rollout.greedy, False),
        ("temperature", rollout.temperature, 1.0),
        ("top_p", rollout.top_p, 1.0),
        ("top_k", rollout.top_k, 0),
    ):
        if now != must:
            raise UserError(
                f"train.loss: {ratios[0]} weighs each token by its probability when it was drawn, which rollout.{key}: "
                f"{now} makes another one; set rollout.{key}: {str(must).lower()}"
            )


def check_models(config: Config) -> Agreement | None:
    """The two models: they speak the same token ids, hold what their configs say, and can be cut as asked.

    Returns:
        What ``settle`` would, where it has come out on the way.

    Raises:
        UserError: a checkpoint that is missing or not what its config.json says, or models that do not fit together.
    """
    models, asked = config.models, _asks_teacher(config)
    teacher = models.teacher if asked else models.student
    both = check_pair(teacher, models.student, models.tokenizer, models.trust_remote_code, config.data)
    check_cuts(config)
    for folder in dict.fromkeys((models.student, teacher)):
        width = check_checkpoint(folder).vocab_size
        if asked and config.annotate.k > width:
            raise UserError(f"annotate.k is {config.annotate.k} but the logits of {folder} cover {width} ids; lower it")
    return both if asked else None


def settle(config: Config) -> Agreement:
    """On what models that ``check_models`` takes agree: tokenizer, template, and where they differ."""
    models = config.models
    return agree(
        models.tokenizer or models.student,
        config.data,
        models.student,
        models.teacher,
        _asks_teacher(config),
        models.trust_remote_code,
    )


def check_prompts(config: Config, both: Agreement | None = None) -> dict[str, int]:
    """Tokenizer, template and the first rows of all prompt files, as the first stage takes them.

    Args:
        config: the run.
        both: what ``settle`` has found; None: is found out.

    Returns:
        Of the training prompts looked at: ``prompts``, ``dropped_too_long``, ``longest_prompt``, ...

    Raises:
        UserError: what that stage would refuse.
    """

    def job(files: list[Path], evaluation: bool, limit: int | None) -> PrepareJob:
        return PrepareJob(
            out=config.run.dir,
            fingerprint="",
            files=files,
            settings=config.data,
            limit=limit,
            tokenizer=config.models.tokenizer or config.models.student,
            need_answer=evaluation or needs_answers(config) is not None,
            need_reference=not evaluation and config.rollout.source == "reference",
            trust_remote_code=config.models.trust_remote_code,
            student=config.models.student,
            teacher=config.models.teacher,
            teacher_needed=_asks_teacher(config),
        )

    found = look(job(config.data.prompts, False, config.data.limit), FIRST_ROWS, both)
    if config.evaluate.prompts:
        look(job(expand(config.evaluate.prompts, "test"), True, config.evaluate.limit), FIRST_ROWS, both)
    return found


def check_engine(config: Config, target: str, longest_prompt: int) -> None:
    """Whether vLLM can answer prompts of this length with the models that it is given.

    Raises:
        UserError: it cannot.
    """
    if config.rollout.source != "reference":
        model = config.models.teacher if config.rollout.source == "teacher" else config.models.student
        check_servable(model, target, longest_prompt + config.rollout.max_new_tokens)
    if config.evaluate.prompts:
        check_servable(config.models.student, target, 1)


def _asks_teacher(config: Config) -> bool:
    return asks(config, "teacher") or config.rollout.source == "teacher"


def check_cuts(config: Config) -> None:
    """Models that tensor parallelism cuts must come out even, and so must heads that context parallelism deals out.

    Raises:
        UserError: they do not, or a model is neither there nor known.
    """
    t, student = config.train, planned_spec(config.models.student)
    teacher = planned_spec(config.models.teacher) if _asks_teacher(config) else student
    for key, size, spec, context in (
        ("annotate", config.annotate.tensor_parallel if asks(config, "teacher") else 1, teacher, 1),
        ("annotate", config.annotate_student.tensor_parallel if asks(config, "student") else 1, student, 1),
        ("train", t.tensor_parallel, student, t.context_parallel),
    ):
        try:
            heads_of(shard_of(spec, size), context)
        except UserError as e:
            raise UserError(f"{key}.{e}") from None
