"""What a run folder keeps of where it came from: nothing secret, the changes as a patch that applies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mmfusion
from mmfusion import runs
from mmfusion.runs import provenance


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("logger.wandb.api_key=abc", "logger.wandb.api_key=***"),
        ("++api_key=a,b", "++api_key=***"),
        ("logger.x={api_key: abc def, project: p}", "logger.x={api_key: ***, project: p}"),
        ("logger.x={a: {'password': 'a, b'}, b: 1}", "logger.x={a: {'password': ***}, b: 1}"),
        ('logger.x={"access_key":"q\'q",n:2}', 'logger.x={"access_key":***,n:2}'),
        (r"logger.x={token:a\,b}", "logger.x={token:***}"),
        ("prompt=my api_key: abc", "prompt=my api_key: ***"),
        ("x=[{secret: s}, {n: 1}]", "x=[{secret: ***}, {n: 1}]"),
        ("num_memory_tokens=4", "num_memory_tokens=4"),
        ("data.tokenizer=t.model", "data.tokenizer=t.model"),
        ("optim.lr=1e-3", "optim.lr=1e-3"),
    ],
)
def test_no_secret_of_the_command_line_is_kept(argument: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/mmfusion/cli/main.py", "train", argument])
    assert provenance.masked(argument) == expected
    assert provenance.environment()["mmfusion"] == mmfusion.__version__
    assert provenance.environment()["command"].startswith("mmfusion train ")


def test_what_a_secret_variable_holds_is_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert provenance.masked("note=0123456789x") == "note=***x"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean checkout that the code of this process is taken to be in."""
    files = {"model.py": "token = ids[0]\nwidth = 1\n", "conf/wandb.yaml": "project: p\n", "blob.bin": "\0\1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "mmfusion" / "runs" / "provenance.py"))
    return tmp_path


def test_changes_are_a_patch_that_applies(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("runs") / "run"
    (checkout / "model.py").write_text("token = ids[1]\nwidth = 2\nnäme = 'x'\n")
    (checkout / "private.txt").write_text("not tracked")
    changed = (checkout / "model.py").read_text()
    runs.create(run)
    patch = (run / "changes.diff").read_text()
    assert "private" not in patch
    subprocess.run(["git", "-C", str(checkout), "checkout", "-q", "model.py"], check=True)
    subprocess.run(["git", "-C", str(checkout), "apply", str(run / "changes.diff")], check=True)
    assert (checkout / "model.py").read_text() == changed
    assert json.loads((run / "environment.json").read_text())["commit"].endswith("+changes")


def test_a_clean_tree_leaves_no_patch(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("runs") / "run"
    runs.create(run)
    assert sorted(path.name for path in run.iterdir()) == ["environment.json"]


def test_a_patch_holds_no_secret_and_has_an_end(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "conf" / "wandb.yaml").write_text("project: p\napi_key: 0123456789abcdef\n")
    (checkout / "model.py").write_text("token = ids[0]\npassword: str = 'open sesame'\n")
    (checkout / "blob.bin").write_bytes(b"\0\2")
    patch = provenance.changes()
    assert "+api_key: ***" in patch
    assert "+password: str = ***" in patch
    assert "token = ids[0]" in patch
    assert "Binary files" in patch
    monkeypatch.setattr(provenance, "MAX_CHANGES", 100)
    cut = provenance.changes()
    assert cut[:100] == patch[:100]
    assert cut.endswith(f"# cut here; it has {len(patch.encode())} bytes in all\n")


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert (runs.commit(), provenance.changes()) == (None, "")
