"""Empty libraries in the place of CANN's, made of what MindSpore's own libraries ask for.

MindSpore's Ascend plugin links CANN's libraries and looks up others by name. In a dry run it calls hardly any of their
functions and never looks at what they compute, so each stand-in exports the names that are asked for: functions that
return success, constructors that leave an empty object, and makers of handles that return a pointer to something.
Nothing of CANN is read or copied.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from npd_ascend.errors import UserError
from npd_ascend.store.atomic import atomic_folder

TOOLS = ("gcc", "nm", "strings")
_LINKED = (
    "ge_runner",
    "graph",
    "msprofiler",
    "hccl",
    "runtime",
    "platform",
    "c_sec",
    "nnopbase",
    "ascend_hal",
    "profapi",
    "register",
    "mmpa",
    "ascendalog",
    "atb",
    "acl_op_compiler",
    "acl_tdt_channel",
    "ge_compiler",
)
"""Libraries that MindSpore links or opens beside libascendcl and libopapi, which hold all symbols."""
_SYSTEM = (
    "libstdc++.so.6",
    "libgomp.so.1",
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libpthread.so.0",
    "libdl.so.2",
)
_NOT_LOADED = re.compile("op_kernels|custom_asc|custom_aicpu|dvpp")
_FOREIGN = ("Py", "_Py", "__cxa", "__gmon", "_ITM")
"""Undefined symbols that the interpreter and the C++ runtime bring."""
_LOOKED_UP = re.compile(r"(acl|Hccl|Hcom|hccl|hcom|rt|GE|mstx)[A-Za-z0-9_]{3,60}")
_ACLNN = re.compile(r"aclnn[A-Z][A-Za-z0-9]+")
_OPAPI = {
    "aclnnInit",
    "aclnnFinalize",
    "InitHugeMemThreadLocal",
    "UnInitHugeMemThreadLocal",
    "ReleaseHugeMem",
    "PTAGetExecCache",
    "InitPTACacheThreadLocal",
    "SetPTAHashKey",
    "CanUsePTACache",
    "aclDestroyAclOpExecutor",
}
_MADE = {
    "aclCreateTensor",
    "aclCreateScalar",
    "aclCreateIntArray",
    "aclCreateFloatArray",
    "aclCreateBoolArray",
    "aclCreateTensorList",
}
_HANDLES = _MADE | {
    "aclopCreateAttr",
    "aclCreateTensorDesc",
    "aclCreateDataBuffer",
    "aclmdlCreateDataset",
    "aclmdlCreateDesc",
    "acltdtCreateDataset",
}


def missing_tools() -> list[str]:
    """Programs that are needed and not installed."""
    return [t for t in TOOLS if shutil.which(t) is None]


def build(mindspore: Path, version: str, folder: Path) -> None:
    """Makes the stand-ins for an installed MindSpore.

    Args:
        mindspore: its package folder.
        version: its version, which CANN's Python packages are compared with.
        folder: where they go, named ``cann``, whole or not at all: ``lib64``, ``opp``, ``python``.

    Raises:
        UserError: a program is missing or fails, this MindSpore has no Ascend plugin, or the machine passes objects in
            other registers than x86-64.
    """
    if platform.machine() != "x86_64":
        raise UserError(
            f"--compile without CANN is for x86-64 machines, and this one is {platform.machine()}: install CANN"
        )
    if missing := missing_tools():
        raise UserError(f"--compile needs {', '.join(missing)} to stand in for CANN: install gcc and binutils, or CANN")
    wanted = _plugin(mindspore)
    texts = [
        set(_run("strings", "-n", "5", f).split())
        for f in [*wanted, *(mindspore / "lib").glob("libmindspore_pyboost.so"), *mindspore.glob("_c_expression*")]
    ]
    aclnn = {name for text in texts for word in text for name in _ACLNN.findall(word)}
    called = {word for text in texts for word in text if _LOOKED_UP.fullmatch(word) and not word.startswith("aclnn")}
    opapi = _OPAPI | aclnn | {f"{n}GetWorkspaceSize" for n in aclnn} | _MADE
    opapi |= {n.replace("Create", "Destroy") for n in _MADE}
    with atomic_folder(folder) as new:
        libraries = new / "lib64"
        libraries.mkdir()
        (new / "opp").mkdir()
        _library(libraries, "ascendcl", called | _undefined(mindspore, wanted))
        _library(libraries, "opapi", opapi)
        for name in _LINKED:
            _link(libraries, name, "-nostdlib", "-x", "c", "/dev/null", f"-L{libraries}", "-lascendcl")
        package = new / "python" / "hccl"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "sys_version.py").write_text(f"__sys_version__ = {version!r}\n")


def _plugin(mindspore: Path) -> list[Path]:
    """The libraries of MindSpore that want CANN."""
    plugin = mindspore / "lib" / "plugin"
    inside = [f for f in plugin.glob("ascend/**/*.so*") if f.is_file() and not _NOT_LOADED.search(str(f))]
    outside = [*plugin.glob("libmindspore_ascend.so*"), *plugin.glob("libmindspore_ops_ascend.so")]
    if not inside or not outside:
        raise UserError(f"{mindspore}: this MindSpore was built without the Ascend plugin, which holds the compiler")
    return inside + outside


def _undefined(mindspore: Path, wanted: list[Path]) -> set[str]:
    """Symbols that the plugin needs and no library here has."""
    libraries = mindspore / "lib"
    have = [
        *wanted,
        *libraries.glob("*.so*"),
        *mindspore.glob("*.so"),
        *(libraries / "plugin").glob("*.so*"),
        *(libraries / "plugin").glob("cpu/*.so"),
    ]
    have += [f for n in _SYSTEM if (f := Path(_run("gcc", f"-print-file-name={n}").strip())).is_absolute()]
    found = set().union(*(_symbols(f, "--undefined-only") for f in wanted))
    found -= set().union(*(_symbols(f, "--defined-only") for f in have))
    return {n for n in found if not n.startswith(_FOREIGN)}


def _symbols(library: Path, which: str) -> set[str]:
    return {line.split()[-1].partition("@")[0] for line in _run("nm", "-D", which, library).splitlines()}


def _library(folder: Path, name: str, symbols: Iterable[str]) -> None:
    """A shared library whose functions do as good as nothing, written in C: no header of CANN is needed for that."""
    source = folder / f"{name}.c"
    lines = ["static long blob[8192];", "extern char _ZNSs4_Rep20_S_empty_rep_storageE[] __attribute__((weak));"]
    lines += [f"long {n}(long *self) {{ {_body(n)} }}" for n in sorted(symbols)]
    source.write_text("\n".join(lines) + "\n")
    _link(folder, name, "-w", source, "-lstdc++")
    source.unlink()


def _body(symbol: str) -> str:
    """What a function does. The caller makes room for an object that it is returned, and says where as a first argument
    before all others (System V ABI of x86-64)."""
    for matches, body in _BODIES:
        if matches(symbol):
            return body
    return "return 0;"


def _zero(first: int, stop: int) -> str:
    return "".join(f"self[{i}] = 0; " for i in range(first, stop))


_BODIES: tuple[tuple[Callable[[str], object], str], ...] = (
    (re.compile(r"_ZN2ge8OperatorC").match, _zero(1, 3) + "return 0;"),  # its first word is the table of methods
    (re.compile(r"_ZN2ge\d+\w+?C[12]E").match, _zero(0, 2) + "return 0;"),
    (re.compile("OperatorFactory14CreateOperator").search, _zero(0, 6) + "return (long)self;"),
    (
        {"_ZNK2ge10TensorDesc8GetShapeEv", "_ZNK2ge6Tensor13GetTensorDescEv"}.__contains__,
        _zero(0, 2) + "return (long)self;",
    ),
    ({"_ZNK2ge5Shape7GetDimsEv"}.__contains__, _zero(0, 3) + "return (long)self;"),
    (
        {"_ZNK2ge8Operator7GetNameEv", "_ZNK2ge8Operator9GetOpTypeEv"}.__contains__,  # an empty string of the old ABI
        "self[0] = (long)(_ZNSs4_Rep20_S_empty_rep_storageE + 24); return (long)self;",
    ),
    (_HANDLES.__contains__, "return (long)blob;"),
    (re.compile("AscendString9GetString").search, "return (long)blob;"),
)


def _link(folder: Path, name: str, *arguments: str | Path) -> None:
    target = folder / f"lib{name}.so"
    _run(
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-fno-builtin",
        "-o",
        target,
        f"-Wl,-soname,{target.name}",
        "-Wl,--no-as-needed",
        *arguments,
    )


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, errors="replace")
    if done.returncode and command[0] == "gcc":
        last = next((x for x in reversed(done.stderr.splitlines()) if x.strip()), "no message")
        raise UserError(f"gcc cannot make the stand-ins for CANN: {last.strip()}")
    return done.stdout
