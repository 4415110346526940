"""Columns of every Parquet dataset: the contract between stages. Change one, raise ``SCHEMA_VERSION``.

Rollouts, scores and selection have the same rows in the same order, shard by shard: row r of shard s is the same
sample everywhere. A sample's **ordinal** is its row number counted over all shards. Shard s of the rollouts answers
shard s of the prompts, ordered by (prompt_index, path).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from npd_ascend.arrays import Array
from npd_ascend.store.arrays import to_arrow, to_numpy
from npd_ascend.store.traits import hashes, looping

_ids = pa.list_(pa.int32())
_category = pa.dictionary(pa.int8(), pa.string())

PROMPTS = pa.schema(
    [
        ("prompt_index", pa.int64()),  # 0..N-1 over all shards
        ("prompt_id", pa.int64()),
        ("prompt_ids", _ids),  # chat-templated prompt, generation header included
        ("tokens", pa.int32()),  # of prompt_ids; filled in by the store
        ("prompt_hash", pa.int64()),  # of prompt_ids, the same for equal prompts; filled in by the store
        ("reference_ids", _ids),  # reference answer with end token, or null
        ("label_ids", _ids),  # targets aligned with reference_ids where they differ from it, or null
        ("answer", pa.string()),  # for the checker, or null
        ("text", pa.string()),  # the user's turn, for people
    ]
)

ROLLOUTS = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("prompt_index", pa.int64()),
        ("path", pa.int8()),  # 0 is greedy when there is a greedy path; references have path 0
        ("response_ids", _ids),  # end token included when the model gave one; may be empty
        ("tokens", pa.int32()),  # of response_ids; filled in by the store
        ("response_hash", pa.int64()),  # of response_ids, the same for equal answers; filled in by the store
        ("loops", pa.bool_()),  # ends in a repeated cycle (store.traits), end token aside; filled in by the store
        (
            "logprobs",
            pa.list_(pa.float32()),
        ),  # of each response token under the snapshot (temperature 1); null for references
        ("label_ids", _ids),  # CE targets that differ from response_ids, or null
        ("finish_reason", _category),  # stop, length (truncated), reference
    ]
)

SCORES = pa.schema(
    [  # context: the prompt, or for ``unconditioned`` scores BOS + assistant header only
        ("sample_id", pa.int64()),
        ("tokens", pa.int32()),  # response tokens scored
        ("nll", pa.float64()),  # mean NLL of the response after its context, nats a token; NaN when empty
        ("entropy", pa.float32()),  # mean entropy of the model along the response, nats; NaN when empty or not known
    ]
)

REWARDS = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("value", pa.float64()),  # weighted sum of the parts
        ("parts", pa.list_(pa.float32())),  # each reward, in the order of ``extra["parts"]``, without its weight
    ]
)

SELECTION = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("keep", pa.bool_()),
        ("reason", _category),  # kept, or why not: empty, degenerate, disconnect, truncated, undefined, ...
        ("zone", _category),  # degenerate, proximal, disconnect, undefined (by Δ-IFD, whatever the filter)
        ("weight", pa.float32()),  # sample weight, 0 where not kept, mean 1 over kept samples
        ("metric", pa.float64()),  # value the filter looked at
        ("ifd_teacher", pa.float64()),
        ("ifd_student", pa.float64()),
        ("delta_ifd", pa.float64()),
    ]
)

PACKS = pa.schema(
    [  # shard e is the plan of the generation's local epoch e; a row is a packed row
        ("samples", pa.list_(pa.int64())),  # ordinals in the generation's rollouts, left to right in the row
        ("prompt_tokens", pa.list_(pa.int32())),  # tokens of each sample's prompt in the row
        ("response_tokens", pa.list_(pa.int32())),  # tokens of each response in the row (less than all when truncated)
    ]
)

OPTIONAL: dict[str, list[pa.Field]] = {
    # Parts of the answer that the model reads and does not write (turns of tools and users): begin and end of each, one
    # pair behind the other, counted in its tokens; ascending, disjoint. Null: none.
    "prompts": [pa.field("reference_masked", _ids)],
    "rollouts": [pa.field("masked", _ids)],
    # The value of an answer, and how much better it is than its group (``select.advantages``): of runs with rewards.
    "selection": [pa.field("reward", pa.float64()), pa.field("advantage", pa.float32())],
}
"""Columns that a shard has only where a row of it has a value: one without is, byte for byte, as if there were none."""

SCHEMAS = {
    "prompts": PROMPTS,
    "rollouts": ROLLOUTS,
    "scores": SCORES,
    "rewards": REWARDS,
    "selection": SELECTION,
    "packs": PACKS,
}


def schema_of(kind: str, table: pa.Table) -> pa.Schema:
    """What a shard with this content is written as."""
    schema = SCHEMAS[kind]
    for field in OPTIONAL.get(kind, ()):
        if field.name in table.column_names and table[field.name].null_count < len(table):
            schema = schema.append(field)
    return schema


def with_optional(kind: str, table: pa.Table, columns: list[str]) -> pa.Table:
    """Adds the asked columns that a shard has none of, empty."""
    for field in OPTIONAL.get(kind, ()):
        if field.name in columns and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


_NOTED = {"prompts": "prompt_ids", "rollouts": "response_ids"}


def with_traits(kind: str, table: pa.Table) -> pa.Table:
    """Adds what the store fills in of prompts and rollouts: lengths, hashes and loops are read far more often than the
    tokens of which they tell."""
    if kind not in _NOTED:
        return table
    import pyarrow.compute as pc  # takes a tenth of the time in which a dry run is done

    lists = table[_NOTED[kind]].cast(_ids)
    counts = pc.fill_null(pc.list_value_length(lists), 0)
    tokens = to_numpy(pc.list_flatten(lists))
    offsets = np.concatenate([[0], np.cumsum(to_numpy(counts), dtype=np.int64)])
    added = {"tokens": counts, f"{_NOTED[kind].removesuffix('_ids')}_hash": to_arrow(hashes(tokens, offsets))}
    if kind == "rollouts":
        cut = pc.equal(pc.cast(table["finish_reason"], pa.string()), "length").fill_null(False)
        added["loops"] = to_arrow(looping(*_without_end(tokens, offsets, np.array(cut.to_pylist(), bool))))
    for name, column in added.items():  # a table made after the schema has the columns, empty
        table = table.drop([name] if name in table.column_names else []).append_column(name, column)
    return table


def _without_end(tokens: Array, offsets: Array, cut: Array) -> tuple[Array, Array]:
    """Takes the end token off the sequences that have one: those that were not cut."""
    off = ~cut & (np.diff(offsets) > 0)
    keep = np.ones(len(tokens), bool)
    keep[offsets[1:][off] - 1] = False
    return tokens[keep], offsets - np.concatenate([[0], np.cumsum(off)])


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """How Parquet writes each column, as arguments of ``pq.write_table``.

    Numbers of a fixed width stand as they are: random ids and floats gain a tenth by compression and are read several
    times slower. Lists and text are compressed; token ids and categories go through a dictionary first.
    """
    compression, dictionary = {}, []
    for field in schema:
        if pa.types.is_list(field.type):
            name = f"{field.name}.list.element"
            compression[name] = "zstd"
            if pa.types.is_integer(field.type.value_type):
                dictionary.append(name)
        else:
            compression[field.name] = "zstd" if pa.types.is_string(field.type) else "none"
            if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type):
                dictionary.append(field.name)
    return {"compression": compression, "use_dictionary": dictionary}
