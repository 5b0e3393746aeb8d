"""status.json: a run's heartbeat, and what a silent one says.

It is written whole at the start, while steps are taken (`mmfusion.training.heartbeat`), once a minute whatever happens,
and at the end. One that still says `running` when its process is gone was killed.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from mmfusion.runs.folder import RunError, write
from mmfusion.runs.provenance import without_secrets

FILE = "status.json"
BEAT_S = 60.0
SILENT_S = 5 * BEAT_S  # of another machine, where no process can be looked for
State = Literal["running", "evaluating", "finished", "failed", "stopped", "killed", "unknown"]  # the last two: as read
LIVE = ("running", "evaluating")
_writing = threading.Lock()
Model = TypeVar("Model", bound=BaseModel)


class Status(BaseModel):
    """Times are seconds since 1970; `spent_s` is that of earlier processes, `since` begins this one's.

    `place` tells machines, their boots and containers apart; `started` tells a process from a later one of its number.
    `data` is the fingerprint of the data, as in a checkpoint's lineage.
    """

    state: State = "unknown"
    message: str | None = None
    stage: str = "pretrain"
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = {}
    step_s: float | None = None
    data: str | None = None
    time: float = 0.0
    since: float = 0.0
    spent_s: float = 0.0
    host: str = ""
    place: str = ""
    pid: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    started: float = 0.0

    @property
    def seconds(self) -> float:
        """How long processes worked on the run."""
        return self.spent_s + max(0.0, self.time - self.since)


@contextmanager
def beating(folder: Path, *, steps: int, stage: str = "pretrain") -> Iterator[None]:
    """Keep the status of a run under way; `finished` if it ends well, else it is for the caller to `mark` how it ended.

    The status of a run that was finished before is left as it is.
    """
    if (folder / "report.html").exists():
        yield
        return
    spent = _kept(folder).seconds
    mark(folder, "running", message=None, steps=steps, stage=stage, spent_s=spent, since=time.time(), **_here())
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            mark(folder)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    mark(folder, "finished")


def mark(folder: Path, state: State | None = None, **facts: Any) -> None:
    """Change the folder's status, written whole with the time; `metrics` add to what is there.

    A status that cannot be written ends no run: a full disk is told by what needs it.
    """
    with _writing:
        kept = _kept(folder)
        if message := facts.get("message"):
            facts["message"] = without_secrets(message)
        facts["metrics"] = {**kept.metrics, **facts.get("metrics", {})}
        changed = kept.model_copy(update={"state": state or kept.state, **facts, "time": time.time()})
        try:
            write(folder / FILE, changed.model_dump_json(indent=1) + "\n")
        except OSError:
            return


def _kept(folder: Path) -> Status:
    try:
        return load(folder / FILE, Status)
    except RunError:  # damaged: begin anew
        return Status()


def load(path: Path, model: type[Model]) -> Model:
    """A JSON file of a run folder, checked; the model's defaults if it is not there. Raises RunError if damaged."""
    try:
        return model.model_validate_json(path.read_bytes()) if path.is_file() else model()
    except (ValidationError, OSError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip() if first else error
        raise RunError(f"{path}: not as a run writes it ({reason}); remove it, or bring its copy back") from error


def read_status(folder: Path) -> Status:
    """What a run is in now: a heartbeat whose process is gone is `killed`, a report without one `finished`.

    Raises RunError if the file is damaged.
    """
    status = load(folder / FILE, Status)
    if status.state in LIVE and not _alive(status):
        return status.model_copy(update={"state": "killed"})
    if status.state == "unknown" and (folder / "report.html").exists():
        return status.model_copy(update={"state": "finished"})
    return status


def refuse_running(folder: Path) -> None:
    """Raises RunError if another process works on the run: two of them would write over one another."""
    status = read_status(folder)
    if status.state in LIVE and status.pid != os.getpid():
        raise RunError(f"{folder}: is {status.state} (process {status.pid} on {status.host}); wait for it, or stop it")


def _here() -> dict[str, Any]:
    import psutil

    place = [Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")]  # processes are numbered anew in each
    try:
        names = place[0].read_text().strip(), os.readlink(place[1])
    except OSError:
        names = ()
    host = platform.node()
    return {
        "host": host,
        "place": " ".join((host, *names)),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _alive(status: Status) -> bool:
    import psutil

    if status.place != _here()["place"]:
        return time.time() - status.time < SILENT_S
    try:
        process = psutil.Process(status.pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process.create_time() - status.started) < 5  # a clock set right moves it
    except psutil.NoSuchProcess:
        return False
