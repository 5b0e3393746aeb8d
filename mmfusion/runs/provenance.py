"""What ran, where: command, versions, commit and changes, machine. Nothing secret is among it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mmfusion
from mmfusion.config import SECRET

PACKAGES = ("torch", "timm", "lightning", "hydra-core", "webdataset", "sentencepiece", "numpy")
MAX_CHANGES = 1 << 20  # bytes of changes.diff
_KEY = re.compile(r"([A-Za-z][\w-]*)(?=[\"']?\s*[:=])")
_VALUE = re.compile(r"""(["']?\s*[:=]\s*)("[^"\n]*"|'[^'\n]*'|(?:\\.|[^,{}\[\]"'\n])+)""")
_LITERAL = re.compile(r"""(["']?\s*(?::\s*\w+\s*)?[:=]\s*)("[^"\n]{8,}"|'[^'\n]{8,}')""")  # in code: `token = ids[0]`


def environment() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this process."""
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["mmfusion" if program == "main.py" else program, *map(masked, sys.argv[1:])]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "mmfusion": mmfusion.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The commit of the code that runs, with `+changes` where the work tree differs; None outside a checkout."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return None if head is None or changes is None else head.strip() + ("+changes" if changes.strip() else "")


def changes() -> str:
    """What tracked files differ in from that commit, as a patch of at most MAX_CHANGES bytes, secrets masked."""
    lines, code = [], False
    for line in (_git("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD") or "").splitlines(keepends=True):
        if line.startswith("+++ "):
            code = line.rstrip().endswith((".py", ".pyi"))
        lines.append(without_secrets(line, _LITERAL if code else _VALUE))
    patch = "".join(lines).encode()
    if len(patch) <= MAX_CHANGES:
        return patch.decode()
    return patch[:MAX_CHANGES].decode(errors="ignore") + f"\n# cut here; it has {len(patch):,} bytes in all\n"


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout


def masked(argument: str) -> str:
    """An argument of a command line whose secrets are `***`."""
    key, given, _ = argument.partition("=")
    secret = given and SECRET.search(key.lstrip("+").rpartition(".")[2])
    return f"{key}=***" if secret else without_secrets(argument)


def without_secrets(text: str, value: re.Pattern[str] = _VALUE) -> str:
    """Text in which what stands behind a secret's name, and what such variables of the environment hold, is `***`."""
    kept, at = "", 0
    for key in _KEY.finditer(text):
        if key.start() >= at and SECRET.search(key[1].replace("-", "_")) and (found := value.match(text, key.end())):
            kept += text[at : found.start(2)] + "***"
            at = found.end()
    kept += text[at:]
    for name, held in os.environ.items():
        if SECRET.search(name) and len(held) >= 8:
            kept = kept.replace(held, "***")
    return kept


def processor() -> str:
    """The name that the machine gives its processor, "" where it gives none."""
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return models[0] if models else platform.processor()
    except OSError:
        return platform.processor()
