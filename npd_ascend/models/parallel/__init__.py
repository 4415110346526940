"""Tensor, context and data parallelism: device mesh, collectives, shards of parameters."""
