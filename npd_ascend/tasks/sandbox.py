"""Where programs that a model wrote are run: bubblewrap, without network, without the machine's files, bounded.

A program sees ``/usr`` read-only, an interpreter, and an empty ``/tmp``; it has namespaces of its own for processes,
network, users and all else, no capabilities and no environment. Limits of processes are set inside, where no other
process of this user counts, and hold for root as well, because root leaves its rights before (``RLIMIT_NPROC`` does
not bind root). Memory is watched over all processes together, since limits are for each one alone.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from npd_ascend.errors import UserError
from npd_ascend.out_of_memory import resident_bytes

_NOBODY = 65534
_MIB = 1 << 20
_POLL_S = 0.05
_PROGRAM = "/program.py"
_HELP = (
    "apt-get install bubblewrap (scripts/setup_env.sh does it where it is root), and allow user namespaces: outside "
    "Docker kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0, inside it "
    "--security-opt seccomp=unconfined"
)


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: wall time; processor time too, for each of its processes.
        memory: bytes of all its processes together; address space of each.
        processes: how many there may be at once.
        output: bytes of stdout and of stderr, each; a program that writes more is ended.
        disk: bytes below ``/tmp``.
    """

    seconds: float = 10.0
    memory: int = 512 * _MIB
    processes: int = 32
    output: int = _MIB
    disk: int = 64 * _MIB


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ended: ``exit`` by itself, or for which limit it was ended.
        code: exit code; negative: the signal that ended it.
        stdout, stderr: what it wrote, up to ``Limits.output``.
    """

    ended: Literal["exit", "seconds", "memory", "output"]
    code: int
    stdout: str
    stderr: str

    @property
    def passed(self) -> bool:
        """Whether it ended by itself and without an error."""
        return self.ended == "exit" and self.code == 0


def run(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Runs a Python program in a sandbox of its own.

    Args:
        program: its text.
        stdin: what it reads.
        limits: None: the default ones.

    Raises:
        UserError: there is no sandbox on this machine.
    """
    check()
    return _run(program, stdin, limits or Limits())


@functools.cache
def check() -> None:
    """Whether programs can be run here; looks once a process.

    Raises:
        UserError: they cannot; the message says what is missing.
    """
    if sys.platform != "linux" or not shutil.which("bwrap"):
        raise UserError(f"running programs needs bubblewrap, and there is no bwrap here: {_HELP}")
    found = _run("print('ready')", "", Limits())
    if found.stdout.strip() != "ready":
        said = (found.stderr.strip().splitlines() or [f"exit code {found.code}, {found.ended}"])[-1]
        raise UserError(f"bubblewrap cannot make a sandbox here ({said}): {_HELP}")


def _run(program: str, stdin: str, limits: Limits) -> Outcome:
    text = os.memfd_create("program")
    try:
        os.write(text, program.encode(errors="replace"))
        os.lseek(text, 0, os.SEEK_SET)
        root = os.geteuid() == 0
        process = subprocess.Popen(
            _command(text, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[text],
            start_new_session=True,
            user=_NOBODY if root else None,
            group=_NOBODY if root else None,
            extra_groups=[] if root else None,
        )
    finally:
        os.close(text)
    return _watched(process, stdin, limits)


def _watched(process: subprocess.Popen[bytes], stdin: str, limits: Limits) -> Outcome:
    assert process.stdin and process.stdout and process.stderr
    readers = [_Reader(stream, limits.output) for stream in (process.stdout, process.stderr)]
    writer = threading.Thread(target=_write, args=(process.stdin, stdin.encode(errors="replace")), daemon=True)
    writer.start()
    deadline = time.monotonic() + limits.seconds
    ended: Literal["exit", "seconds", "memory", "output"] = "exit"
    try:
        while True:
            try:
                process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() > deadline:
                ended = "seconds"
            elif any(r.full for r in readers):
                ended = "output"
            elif resident_bytes(process.pid) > limits.memory:
                ended = "memory"
            if ended != "exit":
                break
    finally:
        process.kill()  # and with it, by --die-with-parent and the end of its process namespace, all that it started
        process.wait()
    out, err = (r.text() for r in readers)
    if any(r.full for r in readers):
        ended = "output"
    return Outcome(ended, process.returncode, out, err)


class _Reader(threading.Thread):
    """Takes what a pipe gives, up to a bound."""

    def __init__(self, stream: IO[bytes], most: int):
        super().__init__(daemon=True)
        self._stream, self._most, self._kept, self.full = stream, most, b"", False
        self.start()

    def run(self) -> None:
        with self._stream:
            while data := os.read(self._stream.fileno(), 1 << 16):
                if len(self._kept) + len(data) > self._most:
                    self.full = True
                    return
                self._kept += data

    def text(self) -> str:
        """What came, once the other end is closed."""
        self.join()
        return self._kept.decode(errors="replace")


def _write(stream: IO[bytes], data: bytes) -> None:
    try:
        with stream:
            stream.write(data)
    except OSError:
        pass  # the program has ended, or does not read


def _command(program: int, limits: Limits) -> list[str]:
    lasts = max(1, int(limits.seconds + 1))
    links = [
        part
        for name in ("bin", "sbin", "lib", "lib64", "lib32")
        if Path("/", name).exists()
        for part in (
            ["--symlink", f"usr/{name}", f"/{name}"]
            if Path("/", name).is_symlink()
            else ["--ro-bind", f"/{name}", f"/{name}"]
        )
    ]
    help = _help()
    # Before 0.8 and 0.7. A /tmp without a bound is read-only: what is written there would be memory that nobody counts.
    nested = ["--disable-userns"] if "--disable-userns" in help else []
    tmp = ["--tmpfs", "/tmp"]
    tmp = ["--size", str(limits.disk), *tmp] if "--size" in help else [*tmp, "--remount-ro", "/tmp"]
    return [
        "bwrap", "--unshare-all", "--unshare-user", *nested, "--die-with-parent", "--new-session",
        "--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8", "--cap-drop", "ALL",
        "--ro-bind", "/usr", "/usr", *links, "--dev", "/dev", "--remount-ro", "/dev", *tmp,
        "--ro-bind-data", str(program), _PROGRAM, "--remount-ro", "/", "--chdir", "/tmp", "--",
        "/usr/bin/prlimit", f"--nproc={limits.processes}", f"--as={limits.memory}", f"--cpu={lasts}", "--core=0",
        f"--fsize={limits.disk}", "--", _python(), "-I", "-B", _PROGRAM,
    ]  # fmt: skip


@functools.cache
def _help() -> str:
    return subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout


def _python() -> str:
    """An interpreter below /usr, which is all that a sandbox sees: this one, or the system's."""
    own = os.path.realpath(sys.executable)
    return own if own.startswith("/usr/") else "/usr/bin/python3"
