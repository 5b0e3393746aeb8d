"""What the files of a checkpoint folder are called, and where the folder stands."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmfusion.errors import UserError

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, LINEAGE, CARD, TEMPLATE = (
    "config.yaml", "model.safetensors", "tokenizer.model", "lineage.json", "README.md", "chat_template.jinja",
)  # fmt: skip
HASHED = (CONFIG, WEIGHTS, TOKENIZER)
QUANTIZATION = "quantization"  # a key of config.yaml, where the weights are integers
ADAPTER = "adapter"  # a folder, where the model was trained with one
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")


class CheckpointError(UserError):
    """A checkpoint that cannot be used; one line with the file, the key or tensor, and the remedy."""


def locate(path: Path) -> Path:
    """The checkpoint folder that a run folder or checkpoint folder means. Raises CheckpointError for anything else."""
    if "\0" in str(path):
        raise CheckpointError(f"{str(path)!r}: no file name")
    if path.is_file():
        raise CheckpointError(f"{path}: {kind_of(path)}; give a checkpoint folder (config.yaml, model.safetensors, …)")
    for folder in (path / "checkpoint", path):
        for standing in (folder, aside(folder)):
            if (standing / CONFIG).is_file() and (standing / WEIGHTS).is_file():
                missing = [name for name in (TOKENIZER, LINEAGE) if not (standing / name).is_file()]
                if missing:
                    raise CheckpointError(f"{standing / missing[0]}: missing; copy the whole folder again")
                return standing
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder")
    pickles = sorted(p for p in (*path.glob("*"), *path.glob("*/*")) if p.suffix.lower() in PICKLES and p.is_file())
    if pickles:
        raise CheckpointError(f"{pickles[0]}: {kind_of(pickles[0])}; and {path} holds no {CONFIG} with {WEIGHTS}")
    raise CheckpointError(f"{path}: no checkpoint ({CONFIG} and {WEIGHTS} are missing)")


def aside(folder: Path) -> Path:
    whole = folder.resolve()  # "." has no name
    return whole.parent / f".{whole.name}.previous"


def kind_of(path: Path) -> str:
    """What a file that is no checkpoint folder looks like, told by its first bytes."""
    with path.open("rb") as file:
        head = file.read(9)
    tensors = head[8:] == b"{"  # behind a length of eight bytes, the first of which may be anything
    if (head[:1] == b"\x80" and not tensors) or head[:4] == b"PK\x03\x04" or path.suffix.lower() in PICKLES:
        return "a pickle, which could run code when it is opened; it was not opened"
    return "a single file"


def bytes_of(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(folder: Path) -> str:
    """Of all weights of a checkpoint: adapters of one base share its file, so that theirs count too."""
    digests = [sha256(folder / WEIGHTS), *map(sha256, sorted((folder / ADAPTER).glob("*")))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
