"""Which of several nodes this one is, as ``scripts/start_node.sh`` says in the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from npd_ascend.errors import UserError

_RAY_PORT = 6379


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run.

    Attributes:
        count: how many.
        rank: number of this one; node 0 conducts.
        master: address of node 0.
        port: msrun's port on node 0.
        ray: address at which node 0 has Ray, which joins them.
        address: of this node, at which the others reach it; Ray finds one when it is empty.
    """

    count: int = 1
    rank: int = 0
    master: str = "127.0.0.1"
    port: int = 8118
    ray: str = ""
    address: str = ""

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Nodes:
        """From ``NODES``, ``NODE_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``, ``NPD_RAY_PORT`` and ``NODE_ADDR``;
        one node without.

        Raises:
            UserError: a value is missing or makes no sense.
        """
        count = _number(env, "NODES", 1)
        if count <= 1:
            return cls()
        rank, port = _number(env, "NODE_RANK", None), _number(env, "MASTER_PORT", cls.port)
        if rank >= count:
            raise UserError(f"NODE_RANK {rank} is not below NODES {count}")
        if not 0 < port < 65536:
            raise UserError(f"MASTER_PORT {port}: expected a port number")
        master = env.get("MASTER_ADDR", "")
        if not master:
            raise UserError("MASTER_ADDR is not set: give the address of node 0 on every node")
        ray = f"{master}:{_number(env, 'NPD_RAY_PORT', _RAY_PORT)}"
        return cls(count, rank, master, port, ray, env.get("NODE_ADDR", ""))


def seconds(name: str, default: float, env: Mapping[str, str] = os.environ) -> float:
    """A span of time from the environment.

    Raises:
        UserError: it is no number.
    """
    try:
        return float(env.get(name) or default)
    except ValueError:
        raise UserError(f"{name} is {env[name]!r}: set it to a number of seconds") from None


def _number(env: Mapping[str, str], name: str, default: int | None) -> int:
    text = env.get(name) or ("" if default is None else str(default))
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name} is {text!r}: set it to a number")
    return int(text)


def free_port() -> int:
    """A TCP port on which nothing listens just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
