"""What programs of strangers can do in the sandbox: compute, and nothing else."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from npd_ascend.errors import UserError
from npd_ascend.tasks import sandbox
from npd_ascend.tasks.sandbox import Limits, run

MIB = 1 << 20
inside = pytest.mark.usefixtures("boxed_programs")


@inside
def test_a_program_computes():
    found = run("import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(3)", stdin="1 2 39\n")
    assert (found.ended, found.code, found.stdout, found.passed) == ("exit", 3, "42\n", False)
    assert run("open('/tmp/x', 'w').write('y'); print(open('/tmp/x').read())").passed


@inside
def test_it_sees_no_files_no_network_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    found = run(f"""
import os, socket
print(sorted(os.listdir("/")), dict(os.environ), os.getuid() != 0)
for path in ({str(secret)!r}, "/etc/passwd", "/proc/1/environ", "/root", "/home"):
    print(os.path.exists(path))
for path in ("/usr/x", "/x", "/dev/x", "/dev/shm/x", "/program.py"):
    try:
        open(path, "w")
        print("written", path)
    except OSError:
        pass
for address in (("127.0.0.1", 22), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, 1)
        print("connected")
    except OSError as e:
        print(e.errno is not None)
print([name for _, name in socket.if_nameindex()])
""")
    lines = found.stdout.splitlines()
    assert "s3cret" not in found.stdout and lines[0].endswith("True") and "proc" not in lines[0]
    assert lines[1:6] == ["False"] * 5
    assert not any("written" in line or "connected" in line for line in lines)
    assert lines[-1] in ("[]", "['lo']"), found


@inside
def test_time_ends():
    begin = time.monotonic()
    assert run("while True: pass", limits=Limits(seconds=0.3)).ended == "seconds"
    assert (
        run("import signal, time\nsignal.signal(15, lambda *a: 0)\ntime.sleep(99)", limits=Limits(seconds=0.3)).code < 0
    )
    assert time.monotonic() - begin < 8


@inside
def test_memory_ends():
    assert "MemoryError" in run("x = b'x' * (300 << 20)", limits=Limits(memory=200 * MIB)).stderr
    # Each of these is small enough; together they are not.
    many = "import os, time\nany(os.fork() == 0 for _ in range(8))\nx = b'x' * (40 << 20)\ntime.sleep(9)"
    assert run(many, limits=Limits(memory=200 * MIB, processes=16)).ended == "memory"


@inside
def test_processes_end(boxed_programs):
    """Also for root, whom RLIMIT_NPROC does not bind."""
    found = run("""
import os
n = 0
try:
    while n < 500:
        if not os.fork():
            import time
            time.sleep(5)
            os._exit(0)
        n += 1
except OSError as e:
    print(n, e.errno)
""", limits=Limits(processes=24))  # fmt: skip
    n, errno = map(int, found.stdout.split())
    assert 10 < n < 24 and errno == 11
    assert run("import os\nwhile True: os.fork()", limits=Limits(seconds=0.5)).ended in ("seconds", "exit")
    assert not _left_over()


def _left_over() -> list[str]:
    """Command lines of what is still running of any program."""
    time.sleep(0.2)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "/program.py" in text and os.getppid() != int(path.parent.name):
            found.append(text)
    return [text for text in found if "bwrap" in text or "-I -B" in text]


@inside
def test_output_ends():
    found = run("import sys\nwhile True: sys.stdout.write('x' * 65536)", limits=Limits(output=MIB, seconds=20))
    assert found.ended == "output" and len(found.stdout) <= MIB and not found.passed
    quick = run("print('x' * 5000)", limits=Limits(output=1000))
    assert quick.ended == "output" and not quick.passed
    disk = run("open('/tmp/x', 'wb').write(b'x' * (30 << 20))", limits=Limits(disk=10 * MIB))
    assert not disk.passed


@inside
def test_text_that_is_no_text():
    for program in ("\0", "\ud800", "(" * 100_000, "é = 1\nprint(é)", "# -*- coding: rot13 -*-"):
        assert run(program).ended == "exit"


@inside
def test_an_older_bubblewrap(monkeypatch):
    monkeypatch.setattr(sandbox, "_help", lambda: "")
    assert run("print(1)").passed
    assert "Read-only" in run("open('/tmp/x', 'w')").stderr


def test_no_bubblewrap_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.check.cache_clear()
    try:
        with pytest.raises(UserError, match="there is no bwrap here: apt-get install bubblewrap"):
            run("print(1)")
    finally:
        sandbox.check.cache_clear()


def test_bubblewrap_that_may_not(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # root leaves its rights before, and tmp_path is for its owner alone
        fake = Path(folder, "bwrap")
        fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        for path in (fake, Path(folder)):
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        sandbox.check.cache_clear()
        try:
            with pytest.raises(UserError, match=r"\(bwrap: No permissions to create new namespace\): apt-get"):
                run("print(1)")
        finally:
            sandbox.check.cache_clear()
