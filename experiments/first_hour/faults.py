"""Wrong input over all verbs: what is typed, and the one line that must answer it.

`run_all` does them in this process and says which ended otherwise; tests/test_faults.py runs each of them as a test.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.first_hour import own_data
from experiments.processes import PROGRAM, ROOT
from mmfusion.cli.main import main

SMALL = ("data.batch_size=16", "data.workers=0", "evaluation=none", "trainer.limit_val_batches=1")


@dataclass(frozen=True)
class Case:
    """A command, `{name}` standing for what `World` has under that name, and a pattern of the line it must end in."""

    name: str
    command: str
    told: str


CASES = (
    # train, and what `config` checks the same way
    Case("misspelt key", "train model.decoder.dept=2", r"model.decoder.dept: Decoder .*did you mean 'depth'"),
    Case("wrong type", "train steps=many", r"steps: must be a valid integer, not 'many'"),
    Case("out of range", "train data.batch_size=0", r"data.batch_size: must be greater than 0, not 0"),
    Case("not a number", "train optim.lr=nan", r"optim.lr: must be a finite number"),
    Case("rate below zero", "train optim.lr=-1", r"optim: Invalid learning rate: -1"),
    Case("unknown option", "train model=hug", r"model=hug: no such option.*there are: "),
    Case("unknown group", "train modle=tiny", r"modle: .*did you mean 'model'"),
    Case("data folder missing", "train data=shards data.root={nowhere} {new}", r"nowhere/manifest.json: no manifest"),
    Case("data folder without manifest", "train data=shards data.root={empty} {new}", r"empty"),
    Case("unwritable run folder", "train paths.run=/proc/here/run", r"/proc/here/run.*cannot write there"),
    Case("run folder in use", "train paths.run={run}", r"is not empty; choose another"),
    Case("resume of nothing", "train resume={nowhere}", r"resume=.*nowhere: no run folder"),
    Case("resume of a run without points", "train resume={pointless}", r"no resume point was saved yet"),
    Case("resume with another model", "train resume={run} model.decoder.depth=2", r"cannot change when a run goes on"),
    Case("checkpoint of nothing", "train checkpoint={nowhere}", r"nowhere: no such folder"),
    Case("checkpoint of another model", "train checkpoint={run} model.decoder.depth=2 {new}",
         r"model.decoder.depth is 1 there and 2 here"),
    Case("checkpoint forgotten", "train experiment=frozen_encoders", r"checkpoint: "),
    Case("frozen part misspelt", "train parameters.freeze=[encoder] {new} {small}", r"did you mean 'encoders'"),
    Case("everything frozen", "train parameters.freeze=[encoders,heads,fusion,decoder,objectives] {new} {small}",
         r"nothing is left to train"),
    Case("precision unknown", "train trainer.precision=17 {new} {small}", r"[Pp]recision"),
    Case("vocabulary too small", "train model.decoder.vocab=100 {new} {small}", r"model.decoder.vocab=100: .*8192"),
    Case("configuration folder missing", "train --config-dir {nowhere}", r"nowhere: no such folder"),
    Case("own class misspelt key", "train --config-dir {own}/my_conf model/image=mine model.encoders.image.widht=64",
         r"model.encoders.image.widht: MyEncoder has no such argument; did you mean 'width'"),
    Case("own package missing", "train model.encoders.image._target_=my_lost_pkg.Encoder",
         r"no module named 'my_lost_pkg'"),
    Case("config of a wrong value", "config --check seed=-1", r"seed: must be greater than or equal to 0"),
    Case("plan of a wrong value", "plan model.decoder.depth=0", r"model.decoder.depth: must be greater than 0"),
    # data
    Case("table missing", "data pack {nowhere}.csv {out}", r"nowhere.csv"),
    Case("column missing", "data pack {table} {out} --image picture", r"'picture'"),
    Case("layout unknown", "data pack {empty} {out}", r"empty"),
    Case("pack over something", "data pack {table} {shards}", r"shards.*--overwrite"),
    Case("pack to where nothing can be written", "data pack {table} /proc/here/out", r"/proc/here"),
    Case("all files missing", "data pack {holes} {out}", r"holes.csv|gone"),
    Case("table not UTF-8", "data pack {latin} {out}", r"latin.csv.*UTF-8"),
    Case("split unknown", "data pack {splits} {out}", r"'sometimes'"),
    Case("show of nothing", "data show {nowhere} --out {page}", r"nowhere"),
    Case("stats of a cut tar", "data stats {cut} --out {page}", r"cut"),
    # evaluate, generate, embed
    Case("evaluate without a checkpoint", "evaluate {empty}", r"empty.*no checkpoint"),
    Case("evaluate a pattern without a match", "evaluate {home}/none*", r"none\*"),
    Case("evaluate a task misspelt", "evaluate {run} --data-root {shards} --task captoins", r"did you mean 'captions'"),
    Case("evaluate a task the shards lack", "evaluate {run} --data-root {shards} evaluation=sample --task sound_kind",
         r"sound_kind"),
    Case("evaluate an own class not allowed", "evaluate {own}/run --data-root {shards}", r"--allow my_pkg.MyEncoder"),
    Case("generate from a missing file", "generate {run} --image {nowhere}.png", r"nowhere.png.*cannot be read"),
    Case("generate from text as a picture", "generate {run} --image {table}", r"corrupt picture"),
    Case("generate from a series of wrong shape", "generate {run} --sensor {cube} --rate-hz 50 --channels a --units g",
         r"cube.npy|\[time, channel\]"),
    Case("generate from a series without a rate", "generate {run} --sensor {flat} --channels a,b --units g,g",
         r"rate"),
    Case("generate several without temperature", "generate {run} --prompt hello --n 3", r"temperature"),
    Case("generate from a pickle", "generate {pickle}/last.ckpt --prompt hello", r"pickle.*not opened"),
    Case("embed to where nothing can be written", "embed {run} {picture} --out /proc/here/e.parquet", r"/proc/here"),
    Case("embed of nothing readable", "embed {run} {table} --out {home}/e.parquet", r"things.csv"),
    # runs
    Case("runs of nothing", "runs ls {nowhere}", r"nowhere"),
    Case("best of an unknown metric", "runs best val/los {home}", r"val/los"),
    Case("compare one run", "compare {run}", r"two"),
    Case("compare with nothing", "compare {run} {nowhere}", r"nowhere"),
)  # fmt: skip


def own_package() -> dict[str, str]:
    """The files that notebook 03 writes, by name."""
    source = (ROOT / "notebooks" / "03_own_encoder.py").read_text()
    package, yaml = re.findall(r'write_text\("""\\\n(.*?)"""\)', source, re.DOTALL)
    return {"my_pkg.py": package, "my_conf/model/image/mine.yaml": yaml}


class World:
    """What the cases are about, made once: a run, shards of a table, and a folder for each thing that is wrong."""

    def __init__(self, home: Path) -> None:
        home = home.resolve()  # the cases are run in it
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        (home / "data_prep").symlink_to(ROOT / "data_prep")  # commands are typed here, and find the sample here
        own = home / "own"
        for name, text in own_package().items():
            _write(own / name, text)
        table = own_data.make(home / "table", 0.05)
        self.names = {
            "home": home, "own": own, "table": table, "run": home / "run", "shards": home / "shards",
            "nowhere": home / "nowhere", "out": home / "out", "page": home / "page.html",
            "new": f"paths.run={home / 'new'}",
            "small": " ".join(("steps=1", *SMALL)), "empty": home / "empty", "pointless": home / "pointless",
            "pickle": home / "pickle", "holes": home / "table" / "holes.csv", "latin": home / "table" / "latin.csv",
            "splits": home / "table" / "splits.csv", "cut": home / "cut", "cube": home / "cube.npy",
            "flat": home / "flat.npy", "picture": sorted((home / "table" / "images").iterdir())[0],
        }  # fmt: skip
        self._make(table)

    def _make(self, table: Path) -> None:
        home, run = self.home, self.home / "run"
        _must(["train", f"paths.run={run}", "steps=1", *SMALL])
        mine = ["--config-dir", f"{home}/own/my_conf", "model/image=mine"]
        _must(["train", f"paths.run={home}/own/run", "steps=1", *SMALL, *mine])
        _must(["data", "pack", str(table), str(home / "shards")])
        (home / "empty").mkdir()
        (home / "pointless").mkdir()
        shutil.copy(run / "config.yaml", home / "pointless")
        _write(home / "pickle" / "last.ckpt", "\x80\x04 no pickle is ever opened")
        _write(home / "table" / "holes.csv", "image,text\n" + "".join(f"gone{i}.png,a\n" for i in range(20)))
        (home / "table" / "latin.csv").write_bytes("image,text\na.png,é\n".encode("latin-1"))
        pictures = sorted((home / "table" / "images").iterdir())
        rows = "".join(f'"images/{p.name}",a,sometimes\n' for p in pictures[:20])
        _write(home / "table" / "splits.csv", "image,text,split\n" + rows)
        shutil.copytree(home / "shards", home / "cut")
        for tar in (home / "cut").rglob("*.tar"):
            tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
        np.save(home / "cube.npy", np.zeros((4, 2, 3), np.float32))
        np.save(home / "flat.npy", np.zeros((40, 2), np.float32))

    def fault(self, case: Case) -> str | None:
        """Why a case ended otherwise than it must; None where it ended well."""
        command = [word.format(**self.names) for word in case.command.split(" ")]
        command = [word for one in command for word in (one.split(" ") if "=" in one and "steps=1" in one else [one])]
        before = self._files()
        with contextlib.chdir(self.home):  # a run without a place of its own would be left in its `runs`
            status, told = run_here(command)
        lines = told.strip().splitlines() or [""]
        if status == 0:
            return "ended well"
        if "Traceback" in told:
            return f"a traceback: {lines[-1]}"
        if not re.search(case.told, lines[-1]):
            return f"says otherwise: {lines[-1]}"
        if left := self._files() - before:
            return f"left {sorted(map(str, left))[0]}"
        return None

    def _files(self) -> set[Path]:
        return {path for path in self.home.rglob("*") if "__pycache__" not in path.parts}


def run_here(command: Sequence[str]) -> tuple[int, str]:
    """A verb in this process: exit status and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(command)
        except SystemExit as ended:  # argparse's own refusals
            status = ended.code if isinstance(ended.code, int) else 1
    return status, told.getvalue()


def interrupted_pack(home: Path) -> str | None:
    """Ctrl-C in the middle of a pack, a real process: nothing is left of it."""
    table = own_data.make(home / "source")
    out = home / "packed"
    process = subprocess.Popen(
        [*PROGRAM, "data", "pack", str(table), str(out)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )  # fmt: skip
    while process.poll() is None and not list(home.glob(".packed*/**/*.part")) and not list(home.glob(".packed*/*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    left = [path.name for path in home.iterdir() if path.name != "source"]
    if process.returncode != 130 or "Traceback" in told or left:
        return f"ended {process.returncode}, left {left}, said {told.strip()[-200:]}"
    return None


def run_all(home: Path) -> dict[str, str]:
    """The cases that ended otherwise than they must, with the reason."""
    world = World(home)
    found = {case.name: reason for case in CASES if (reason := world.fault(case))}
    with tempfile.TemporaryDirectory() as folder:
        if reason := interrupted_pack(Path(folder)):
            found["interrupted pack"] = reason
    return found


def _must(command: Sequence[str]) -> None:
    status, told = run_here(command)
    if status:
        raise SystemExit(f"mmfusion {' '.join(command)} failed ({status}): {told}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8" if not text.startswith("\x80") else "latin-1"))
