"""All exceptions of the package, as one tree.

    Exception
    └── NpdError                    whatever this package raises on purpose
        ├── UserError               an input is wrong: what, where, and how to mend it; exit code 2
        │   ├── CorruptShard        a stored shard is damaged; exit code 3
        │   │   └── CorruptSnapshot a checkpoint that a run wrote is damaged
        │   ├── NoPromptFile        a prompt file is not there (data.sources)
        │   └── Unrenderable        a chat template cannot take a conversation (data.template)
        ├── MachineError            disk, memory or threads ran out; exit code 2
        ├── ShardLost               a stage met a damaged shard (pipeline.runner)
        ├── NotFinite               a weight is NaN or infinite (train.checkpoint)
        ├── TemplateFault           a chat template refuses a conversation (data.render)
        ├── Restart                 a stage's job needs a new process (workers.process)
        └── PoolClosed              workers were closed during a job (workers.failures)

    BaseException
    └── Interruption                no error: somebody wants the program to end (interrupt)
        ├── Interrupted             Ctrl-C on the command line (interrupt)
        └── Stopped                 SIGTERM or SIGINT during a run (pipeline.executor)

``UserError``, ``MachineError`` and ``Interruption`` are what callers of the Python interface meet. The other five are
messages between parts of the package, which turn them into one of these; the module that raises each is in
parentheses. Anything that is not in the tree is a fault of this package and shows its traceback.
"""

from __future__ import annotations

import errno

from npd_ascend.visible import one_line

EXIT_USER = 2
EXIT_CORRUPT = 3


class NpdError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        exit_code: what the command line returns for it.
    """

    exit_code = EXIT_USER


class UserError(NpdError):
    """Something the user gave is wrong: one clear line, exit code 2.

    The message says what is wrong, where, and how to mend it.
    """

    def __init__(self, text: str):
        super().__init__(one_line(text))  # what is quoted may hold line feeds, or steer a terminal


class MachineError(NpdError):
    """The machine ran out of disk, memory or threads; the message says what helps. What was finished stays."""


class CorruptShard(UserError):
    """A stored shard no longer matches its checksum; the executor has it made again.

    Attributes:
        dataset: folder of the dataset that holds the shard.
        index: shard number.
    """

    exit_code = EXIT_CORRUPT

    def __init__(self, dataset: str, index: int, detail: str):
        super().__init__(f"{dataset}: shard {index} is damaged ({detail}); run the same command again to regenerate it")
        self.dataset = str(dataset)
        self.index = index


class CorruptSnapshot(CorruptShard):
    """A checkpoint that a run wrote is no longer what it wrote; that run makes it again.

    Attributes:
        dataset: its folder.
        index: -1.
    """

    def __init__(self, folder: str, detail: str):
        UserError.__init__(
            self,
            f"{folder}: {detail}; give the command of its run again, which rebuilds it from the training checkpoint",
        )
        self.dataset, self.index = str(folder), -1


def of_the_disk(e: OSError) -> str | None:
    """What to tell the user when the disk is full or not to be written; None for any other error."""
    where = e.filename or "the run directory"
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({where}); free some space and run the same command again, nothing is lost"
    if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"cannot write {where} ({e.strerror}); mend its permissions, or choose another run.dir"
    return None
