# %% [markdown]
# # An encoder of your own
# A class in a package of your own and a YAML file in a configuration folder of your own: nothing of mmfusion is edited.
# Everything here is written into one folder: a temporary one, or `MMFUSION_OWN`. Run it from the repository's root.

# %%
import importlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import mmfusion
from mmfusion.checkpoint import CheckpointError
from mmfusion.cli.main import main
from mmfusion.data.shards import ShardSet

home = Path(os.environ.get("MMFUSION_OWN") or tempfile.mkdtemp())
(home / "my_conf" / "model" / "image").mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The class
# An encoder takes `Patches` and gives `Tokens` (`mmfusion/types.py` has their shapes):
#
# - `modality`: what it reads: image, audio, sensor or text
# - `width`: of its tokens; the head and the fusion are told the same
# - `merge`: how many consecutive patches become one token; the cutting is told the same, so that the decoder's rows
#   have room for every token. A picture's patches come in blocks of √merge x √merge: consecutive ones are neighbours.
#
# Patches are padded to the longest part: `valid` says what is real, `owner` whose part it is and is handed on. The
# arguments of `__init__` are the configuration's keys; their annotations are what is checked before any data is opened.
# This one is a small convolutional network: a linear map of each patch, then two layers over the grid of patches.

# %%
(home / "my_pkg.py").write_text("""\
from typing import Annotated

import torch
from annotated_types import Gt
from mmfusion.models.layers import Merge
from mmfusion.types import Patches, Tokens
from torch import nn


class MyEncoder(nn.Module):
    modality = "image"

    def __init__(self, *, patch_px: Annotated[int, Gt(0)], width: Annotated[int, Gt(0)] = 96, merge: int = 4) -> None:
        super().__init__()
        self.width, self.merge = width, merge
        self.stem = nn.Linear(patch_px * patch_px * 3, width)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.merging = Merge(width, merge)

    def forward(self, patches: Patches) -> Tokens:
        valid, owner = patches.valid, patches.owner
        row, column = torch.where(valid[..., None], patches.coords[..., 1:3], 0).long().unbind(-1)
        part = torch.arange(len(owner), device=owner.device)[:, None].expand_as(row)
        x = self.stem(patches.values).relu() * valid[..., None]
        grid = x.new_zeros(len(owner), int(row.max()) + 1, int(column.max()) + 1, self.width)
        grid = grid.index_put((part, row, column), x, accumulate=True).movedim(-1, 1)
        for layer in self.layers:
            grid = grid + layer(grid).relu()
        x, coords, valid = self.merging(grid.movedim(1, -1)[part, row, column], patches.coords, valid)
        return Tokens(x, coords, valid, owner)
""")

# %% [markdown]
# ## The file that names it
# It says three things: the encoder with its arguments, what reads its tokens (a head into the space that all modalities
# share, and the fusion into the decoder), and how pictures are cut for it. `${…}` takes another key's value.

# %%
(home / "my_conf" / "model" / "image" / "mine.yaml").write_text("""\
# @package _global_
model:
  encoders:
    image: {_target_: my_pkg.MyEncoder, patch_px: 8, width: 96, merge: 4}
  heads:
    image:
      _target_: mmfusion.models.heads.PlacedHead
      width: ${model.encoders.image.width}
      out: ${model.heads.text.out}
      anchors: [1, 3, 3, 1]
  fusion:
    widths: {image: "${model.encoders.image.width}"}
data:
  pipeline:
    patchify:
      image:
        _target_: mmfusion.data.patchify.PatchifyImage
        patch_px: ${model.encoders.image.patch_px}
        merge: ${model.encoders.image.merge}
        size_px: 48
""")

# %% [markdown]
# ## Training
# `mmfusion train --config-dir my_conf model/image=mine`; `main` is the command. Python finds a package that is
# installed or on `PYTHONPATH`, and one that stands next to `--config-dir`. `debug=one_step` looks whether everything
# fits; `MMFUSION_STEPS=100` in the environment trains so many steps.

# %%
steps = os.environ.get("MMFUSION_STEPS")
how_long = (
    [f"steps={steps}", "trainer.log_every_n_steps=1"]
    if steps
    else ["debug=one_step", "data.workers=0", "data.batch_size=16"]
)
mine = ["--config-dir", str(home / "my_conf"), "model/image=mine"]
options = [*mine, *how_long, "evaluation=none", f"paths.run={home / 'run'}"]
assert main(["train", *options]) == 0

# %% [markdown]
# A misspelt argument is found before any data is opened, in a class of yours as in ours.

# %%
main(["train", *mine, "model.encoders.image.widht=64"])

# %% [markdown]
# ## Loading
# A checkpoint builds no class that was not named: from Python the class itself (or `"my_pkg.MyEncoder"`), on the
# command line `--allow my_pkg.MyEncoder`; there, Python finds a package in the current folder too.

# %%
sys.path.append(str(home))
MyEncoder = importlib.import_module("my_pkg").MyEncoder
try:
    mmfusion.load(home / "run")
except CheckpointError as refusal:
    print(refusal)
model = mmfusion.load(home / "run", allow=[MyEncoder])
print(f"{model.parameter_counts['image']:,} of its parameters are in {type(model.network.encoders['image']).__name__}")

# %% [markdown]
# ## Asking it

# %%
test = [s for s in ShardSet(Path("data_prep/sample"), "test") if s.source == "emoji-twitter"][::16]
names = [next(p.text or "" for p in s.of("text") if p.lang == "en") for s in test]
scores = model.embed(image=[s.of("image")[0] for s in test]) @ model.embed(text=names).T
first = np.mean(scores.argmax(axis=1) == np.arange(len(names)))
print(f"first of {len(names)} names: {first:.0%}, chance {1 / len(names):.1%}")
print(model.generate(image=test[0].of("image")[0]))
