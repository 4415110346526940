"""``npd prune``: a student made of its teacher's most influential layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import DataConfig, DeviceConfig
from npd_ascend.data.prompts import read_prompts
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.prune import check_layers, most_influential, prune
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.ops.environments import resolve_device
from npd_ascend.progress import Meter, message

_ROW = {"cpu": 512, "ascend": 2048}


def prune_checkpoint(
    source: Path, out: Path, keep: int | None, layers: str | None, texts: Path | None, limit: int
) -> str:
    """Chooses layers, by influence on texts or as they are given, and writes the pruned folder.

    Args:
        source: Hugging Face folder of a supported family.
        out: folder to make or replace.
        keep: how many layers; needs ``texts``.
        layers: numbers with commas between them, in place of ``keep``.
        texts: prompts in the format of ``data.prompts``, with field ``prompt`` and, where there is one, ``response``.
        limit: rows of ``texts`` that are read.

    Returns:
        One line that says what was written.

    Raises:
        UserError: the options, the texts or the checkpoint are not usable.
    """
    spec = check_checkpoint(source)
    influence = None
    if (keep is None) == (layers is None):
        raise UserError("give either --keep N with --texts FILE, or --layers 0,1,...")
    if layers is not None:
        chosen = _numbers(layers)
    else:
        assert keep is not None
        if not 1 <= keep <= spec.num_layers:
            raise UserError(f"--keep {keep}: {source} has {spec.num_layers} layers")
        if texts is None:
            raise UserError("--keep needs --texts FILE, on which the influence of the layers is measured")
        influence = _influence(source, spec, texts, limit)
        chosen = most_influential(influence, keep)
    check_layers(chosen, spec, source)
    pruned = prune(source, chosen, out, influence)
    return (
        f"{out}: layers {','.join(map(str, chosen))} of {spec.num_layers}, {pruned.parameters:,} of "
        f"{spec.parameters:,} parameters"
    )


def _numbers(layers: str) -> list[int]:
    try:
        return [int(part) for part in layers.split(",")]
    except ValueError:
        raise UserError(f"--layers {layers}: expected numbers with commas between them, such as 0,1,5") from None


def _influence(source: Path, spec: ModelSpec, texts: Path, limit: int) -> Array:
    device = resolve_device(DeviceConfig())
    row = _ROW[device.target]
    tokens = _tokens(source, texts, limit, min(row, spec.max_positions))
    message(f"block influence of {spec.num_layers} layers on {len(tokens)} texts, {sum(map(len, tokens)):,} tokens")
    from npd_ascend.models.influence import block_influence

    with Meter("prune", spec.num_layers, "layers") as meter:
        return block_influence(source, tokens, device, row, lambda layer: meter.advance())


def _tokens(source: Path, texts: Path, limit: int, most: int) -> list[Array]:
    """Token ids of prompts with their answers as the model sees them, cut to ``most`` tokens."""
    tokenizer = load_tokenizer(source)
    template = Template(tokenizer, "auto", eos_token_ids(source, tokenizer))
    settings = DataConfig(prompts=[texts], response_field="response")
    rows = list(read_prompts([texts], settings, limit=limit))
    conversations = [row.messages for row in rows]
    heads = template.render(conversations)
    prompts = template.prompts(heads)
    answered = [i for i, row in enumerate(rows) if row.response is not None]
    answers = dict(
        zip(
            answered,
            template.answers(
                [conversations[i] for i in answered],
                [heads[i] for i in answered],
                [prompts[i] for i in answered],
                [rows[i].response or "" for i in answered],
            ),
            strict=True,
        )
    )
    return [np.array((prompt + answers.get(i, []))[:most], np.int32) for i, prompt in enumerate(prompts)]
