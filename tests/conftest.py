"""Shared by all tests, made once: one run of one step through everything, and a tiny one that nothing trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread for each of pytest's workers, before torch counts them
os.environ.pop("COLUMNS", None)  # a worker's, which has no terminal

import pytest
from filelock import FileLock

# What a fixture needs is imported in it: one file of tests alone begins at once.


SAMPLE = Path("data_prep/sample")
EACH_SHARD = 10  # samples of it that are few
LONGEST = ("test_project.py", "test_comforts.py", "test_options.py", "test_stops.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def one_step_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `mmfusion train debug=one_step` leaves it, evaluated and reported."""
    from mmfusion.cli.main import main

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of this session's workers: the first that asks makes it
    run = shared / "one_step_run"
    with FileLock(shared / "one_step_run.lock"):
        if not (run / "report.html").exists():
            assert main(["train", "debug=one_step", "data.workers=0", f"paths.run={run}"]) == 0
    return run


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first samples of each shard of the embedded sample, in shards of their own, with its tokenizer."""
    from mmfusion.data.index import ShardIndex
    from mmfusion.data.shards import read_manifest
    from mmfusion.data.writer import write_manifest, write_shard

    root = tmp_path_factory.mktemp("few")
    entries = []
    for entry in read_manifest(SAMPLE):
        (root / entry.file).parent.mkdir(parents=True, exist_ok=True)
        index = ShardIndex(SAMPLE / entry.file)
        samples = map(index.read, range(min(len(index), EACH_SHARD)))
        entries.append(write_shard(root / entry.file, samples, split=entry.split, root=root))
    write_manifest(root, entries)
    shutil.copytree(SAMPLE / "tokenizer", root / "tokenizer")
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint of a tiny model with random weights."""
    import tiny_run

    return tiny_run.save(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def media_files(tmp_path: Path) -> Path:
    """A folder with a.png, a.wav, and one series as a.npy and a.csv."""
    import tiny_run

    return tiny_run.media(tmp_path)
