"""The two ways in which a command ends badly on purpose.

Everything else that escapes is a fault of this package and shows its traceback.
"""

from __future__ import annotations

EXIT_USER = 2
EXIT_CORRUPT = 3


class UserError(Exception):
    """Something the user gave is wrong: one clear line, exit code 2.

    The message says what is wrong, where, and how to mend it.
    """

    exit_code = EXIT_USER


class CorruptShard(UserError):
    """A stored shard no longer matches its checksum; the conductor regenerates it.

    Attributes:
        dataset: folder of the dataset that holds the shard.
        index: shard number.
    """

    exit_code = EXIT_CORRUPT

    def __init__(self, dataset: str, index: int, detail: str):
        super().__init__(f"{dataset}: shard {index} is damaged ({detail}); run the same command again to regenerate it")
        self.dataset = str(dataset)
        self.index = index
