"""What a configuration compiles: one ``Graph`` for each process that differs from the others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from npd_ascend.config import Config
from npd_ascend.config.job import Device
from npd_ascend.config.schema import AnnotateConfig, TrainConfig
from npd_ascend.models.mapping import heads_of, shard_of
from npd_ascend.models.shapes import shape_of
from npd_ascend.models.spec import ModelSpec
from npd_ascend.recipes import asks


@dataclass(frozen=True)
class Graph:
    """What one process of a stage compiles: JSON for ``child``.

    Attributes:
        stage: ``train`` covers training and lag, which share a process.
        model: the checkpoint's name, for people.
        config: its ``config.json``; ``layers`` of it are compiled.
        vocabulary: ids that count; logits beyond are padding.
        built_in: the shape is that of ``models/shapes.json``.
        device: type and memory.
        row_length: positions a row.
        settings: of ``TrainConfig`` or ``AnnotateConfig``.
        rank, size: which of how many processes.
    """

    stage: Literal["train", "annotate teacher", "annotate student"]
    model: str
    config: dict[str, Any]
    vocabulary: int
    built_in: bool
    device: dict[str, Any]
    row_length: int
    settings: dict[str, Any]
    rank: int
    size: int

    @property
    def spec(self) -> ModelSpec:
        """Architecture of the layers that are compiled."""
        return ModelSpec.from_config(self.config, {}, self.model)

    @property
    def layers(self) -> int:
        """Of the model as it is compiled."""
        return self.spec.num_layers

    @property
    def key(self) -> str:
        """Equal for graphs that are the same but for their names."""
        return repr({k: v for k, v in asdict(self).items() if k not in ("model", "built_in")})

    def cut_to(self, layers: int) -> Graph:
        """The same with another depth."""
        return replace(self, config={**self.config, "num_hidden_layers": layers})


def graphs(config: Config) -> list[Graph]:
    """All of a configuration, on NPUs whatever the machine is.

    Raises:
        UserError: a model that is neither there nor known, or one that cannot be cut as asked.
    """
    device = Device(
        target="ascend",
        dtype="bfloat16",
        max_device_memory=config.device.max_device_memory,
        deterministic=bool(config.device.deterministic),
    )
    out = []
    for role, settings in (("teacher", config.annotate), ("student", config.annotate_student)):
        if asks(config, role):
            out += _annotating(config, role, settings, device)
    return out + _training(config, device)


def _annotating(config: Config, role: str, settings: AnnotateConfig, device: Device) -> list[Graph]:
    folder = getattr(config.models, role)
    found, built_in = shape_of(folder)
    spec = ModelSpec.from_config(found, {}, str(folder / "config.json"))
    vocabulary = _vocabulary(config)
    width = shard_of(spec, settings.tensor_parallel).vocab_size
    k = settings.k if role == "teacher" else 0
    kept = settings.model_dump(
        mode="json", include={"row_length", "micro_batch", "vocab_chunk_rows", "tensor_parallel"}
    )
    # Workers are groups that know nothing of each other.
    return [
        Graph(
            "annotate teacher" if role == "teacher" else "annotate student",
            folder.name,
            found,
            vocabulary,
            built_in,
            device.model_dump(mode="json"),
            settings.row_length,
            {**kept, "k": k},
            rank,
            settings.tensor_parallel,
        )
        for rank in distinct_ranks(settings.tensor_parallel, width, vocabulary)
    ]


def _training(config: Config, device: Device) -> list[Graph]:
    folder, t = config.models.student, config.train
    found, built_in = shape_of(folder)
    spec = ModelSpec.from_config(found, {}, str(folder / "config.json"))
    own = shard_of(spec, t.tensor_parallel)
    heads_of(own, t.context_parallel)
    vocabulary = _vocabulary(config)
    k = config.annotate.k if asks(config, "teacher") else 0
    settings = {**_of_the_graph(t), "k": k}
    return [
        Graph(
            "train",
            folder.name,
            found,
            vocabulary,
            built_in,
            device.model_dump(mode="json"),
            config.pack.row_length,
            settings,
            rank,
            t.ranks,
        )
        for rank in distinct_ranks(t.tensor_parallel, own.vocab_size, vocabulary)
    ]


def _of_the_graph(settings: TrainConfig) -> dict[str, Any]:
    """Settings of training that its graphs depend on."""
    kept = settings.model_dump(
        mode="json",
        include={
            "micro_batch",
            "data_parallel",
            "tensor_parallel",
            "context_parallel",
            "optimizer_sharding",
            "loss",
            "vocab_chunk_rows",
            "recompute",
            "clip",
            "beta1",
            "beta2",
        },
    )
    return {**kept, "global_batch": settings.micro_batch * settings.data_parallel}


def distinct_ranks(tensor_parallel: int, width: int, vocabulary: int) -> list[int]:
    """Ranks whose graphs have different operators: those that see padding in their slice of the vocabulary, and those
    that see none. Data- and context-parallel ranks compile the same graph with other data.

    Args:
        tensor_parallel: ranks that hold a model.
        width: columns of the logits that each of them has.
        vocabulary: ids that count.
    """
    padded = math.floor(vocabulary / width)  # the first slice that does not count whole
    return [0] if not 0 < padded < tensor_parallel else [0, padded]


def _vocabulary(config: Config) -> int:
    """Ids of the models' tokenizer. While it is not there, those that the shape names, else all that both models have
    logits for."""
    sizes = []
    for role in ("teacher", "student"):
        found, _ = shape_of(getattr(config.models, role))
        sizes.append(int(found.get("tokenizer_size", found["vocab_size"])))
    return min(sizes)
