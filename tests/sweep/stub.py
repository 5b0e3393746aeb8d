"""Stands in for `mmfusion train`: in a tenth of a second it leaves what a run leaves, stops and goes on as one does.

Its validation loss at a step is `a * 100 + seed + 10 / step`, of the values that it is given (`a=…`), and 50 more
behind the step `turn`; `val/step` is the step. The trial `fail` fails, `blind` logs no loss. What is done is written
down in `done.log` beside the run folder: `begin STEP` at each start, `saved STEP`, `end` once.

    python -S stub.py [--config-dir X] a=0.25 b=2 seed=1 paths.run=FOLDER steps=6 every=2 pause=0.01 fail=3
    python -S stub.py resume=FOLDER
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any


def status(run: Path, state: str, step: int) -> None:
    """As `mmfusion.runs.status` reads it, of this process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    place = " ".join((platform.node(), boot, os.readlink("/proc/self/ns/pid")))
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    began = float(next(line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if "btime" in line))
    found = {"state": state, "step": step, "time": time.time(), "since": time.time() - 1, "host": platform.node(),
             "place": place, "pid": os.getpid(), "started": began + ticks / os.sysconf("SC_CLK_TCK")}  # fmt: skip
    draft = run / ".status"
    draft.write_text(json.dumps(found))
    draft.replace(run / "status.json")


def is_trial(name: str, run: Path, given: dict[str, Any]) -> bool:
    """Whether it is the trial whose number is given under the name."""
    return run.parent.name == f"{int(given.get(name, -1)):03}"


def main() -> None:
    """Train, or go on."""
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    run = Path(given.get("resume") or given["paths.run"].strip('"'))
    told: dict[str, Any] = given
    if "resume" in given:
        told = json.loads((run / "config.yaml").read_text())
        at = max(int(point.stem.removeprefix("step=")) for point in (run / "resume").glob("step=*.ckpt"))
    else:
        at = 0
        (run / "resume").mkdir(parents=True)
        (run / "config.yaml").write_text(json.dumps(given))
        loss = "val/other" if is_trial("blind", run, given) else "val/loss"
        (run / "metrics.csv").write_text(f"epoch,step,{loss},val/step\n")
    log = run.with_name(f"{run.name}.done")
    with log.open("a") as file:
        file.write(f"begin {at} {time.time()} threads {os.environ.get('OMP_NUM_THREADS')}\n")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    steps, every = int(told["steps"]), int(told.get("every", 2))
    for step in range(at + 1, steps + 1):
        status(run, "running", step)
        time.sleep(float(told.get("pause", 0)))
        if step == 2 and is_trial("fail", run, told):
            print("mmfusion: made to fail; go on with: nothing", file=sys.stderr)
            sys.exit(1)
        if step % every == 0:
            loss = float(told["a"]) * 100 + int(told["seed"]) + 10 / step + 50 * (step > int(told.get("turn", steps)))
            with (run / "metrics.csv").open("a") as file:
                file.write(f"0,{step - 1},{loss!r},{step}\n")
        (run / "resume" / f"step={step}.ckpt").touch()
        with log.open("a") as file:
            file.write(f"saved {step}\n")
        if stopped:
            status(run, "stopped", step)
            sys.exit(143)
    (run / "report.html").touch()
    status(run, "finished", steps)
    with log.open("a") as file:
        file.write(f"end {steps} {time.time()}\n")


if __name__ == "__main__":
    main()
