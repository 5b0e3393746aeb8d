"""The checkpoint folder: what is in it, written whole or not at all, and opened without running anything from it.

    config.yaml         format version, `model` and `pipeline`: what to build
    model.safetensors   the weights, each tensor once
    tokenizer.model     the vocabulary
    lineage.json        parents, data fingerprint, commit, step, versions, and the sha256 of the three files above
    README.md           the model card
    chat_template.jinja how a conversation is laid out, for other programs
    adapter/            low-rank adapters in peft's layout, where the model was trained with them

Nothing here is a pickle, nothing is fetched, and only classes on an exact list are built (see `BUILDABLE`).
"""

from mmfusion.checkpoint.layout import ADAPTER, CONFIG, HASHED, LINEAGE, TOKENIZER, WEIGHTS, CheckpointError, locate
from mmfusion.checkpoint.reading import check_same, check_vocabulary, fill, load, plain_yaml, quantization
from mmfusion.checkpoint.trust import BUILDABLE, Allowed, buildable, check_buildable
from mmfusion.checkpoint.writing import data_of, lineage, save, write_card

__all__ = [
    "ADAPTER",
    "BUILDABLE",
    "CONFIG",
    "HASHED",
    "LINEAGE",
    "TOKENIZER",
    "WEIGHTS",
    "Allowed",
    "CheckpointError",
    "buildable",
    "check_buildable",
    "check_same",
    "check_vocabulary",
    "data_of",
    "fill",
    "lineage",
    "load",
    "locate",
    "plain_yaml",
    "quantization",
    "save",
    "write_card",
]
