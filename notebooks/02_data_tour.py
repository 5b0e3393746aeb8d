# %% [markdown]
# # A tour of the data
# From a sample as it lies in a shard to what a model reads: parts, patches, tokens, rows; and the order in which
# samples are met. It reads the embedded sample; another folder of shards can be named in the environment as
# `MMFUSION_DATA`. To see pictures and plots and to hear sounds: `uv run mmfusion data show data_prep/sample`.

# %%
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from mmfusion.data.batching import lay_out, single
from mmfusion.data.decode import decode_sample
from mmfusion.data.format import dump_sample
from mmfusion.data.order import Order, global_batch, stripe
from mmfusion.data.patchify import Patchify, PatchifyAudio, PatchifyImage, PatchifySensor
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.select import Select
from mmfusion.data.shards import ShardSet
from mmfusion.data.survey import choose
from mmfusion.data.tokenizer import tokenizer_of
from mmfusion.types import Modality

root = Path(os.environ.get("MMFUSION_DATA") or "data_prep/sample")
shards = ShardSet(root, "train")
print(f"{len(shards):,} samples for training:", ", ".join(f"{name} {n:,}" for name, n in shards.sources.items()))

# %% [markdown]
# ## A sample of each source
# A sample is a list of parts under one key, in reading order: any number of pictures, sounds, series and texts. What
# one looks like is chosen by a hash of its key, so that nobody chose it.

# %%
samples = {source: shards.read(choose(shards, n=1, seed=0, source=source)[0]) for source in shards.sources}
for source, sample in samples.items():
    kinds = Counter(part.type for part in sample.parts)
    print(f"{source}: {sample.key}, {dict(kinds)}, {dict(sample.labels)}, {sample.licence}")
    listed = json.loads(dump_sample(sample))["parts"]  # as it stands in the shard
    for part in [next(part for part in listed if part["type"] == kind) for kind in kinds]:
        print("   ", part)

# %% [markdown]
# ## Bytes become arrays
# One decoder for each modality; nothing in a shard is executed. A part that cannot be decoded raises `SkipSample` with
# a reason that is counted.

# %%
decoded = {source: decode_sample(sample) for source, sample in samples.items()}
for source, sample in decoded.items():
    for part in sample.parts:
        if isinstance(part.data, np.ndarray) and part.file in ("png", "ogg", "npy", "en.ogg"):
            print(f"{source}: {part.type} {part.data.dtype}{list(part.data.shape)}", part.rate_hz or "")

# %% [markdown]
# ## Arrays become patches
# A picture is cut into squares, a sound into stretches of its log-mel spectrogram, a series into half seconds: every
# patch with its place (time in seconds, row, column, channel). `merge` patches that are neighbours become one token.

# %%
patchify: dict[Modality, Patchify] = {"image": PatchifyImage(), "audio": PatchifyAudio(), "sensor": PatchifySensor()}
for source, sample in decoded.items():
    for modality, cut in patchify.items():
        for part in sample.of(modality)[:1]:
            patches = cut(part)
            print(f"{source}: {modality} values{list(patches.values.shape)}", f"-> {patches.tokens(cut.merge)} tokens")
            print("    the last one's time, row, column, channel:", *(f"{at:.2f}" for at in patches.coords[-1]))

# %% [markdown]
# ## Texts become pieces
# 64 pieces are reserved for places of media and for roles; no text can spell one.

# %%
tokenizer = tokenizer_of(root)
assert tokenizer is not None
for text in ("a red fox", "une oie à tête barrée", "лиса", "キツネ", "<|image|>"):
    ids = tokenizer.encode(text)
    print(f"{len(ids):>2} pieces", [tokenizer.decode([i]) for i in ids])

# %% [markdown]
# ## A document
# What the decoder reads: a beginning, one placeholder a token, the language that is asked for, and the answer. Only the
# answer and its end carry a loss; `labels` are what the next place must say.

# %%
answer = tokenizer.encode("a fox")
document = single([0], tokenizer.encode("en"), answer)  # shows part 0, which fills the slots 0, 1 and 2
laid = lay_out(tokenizer, document, {0: ("image", range(3))})
for i, label in zip(laid.ids, laid.labels, strict=True):
    print(
        f"{i:>6} {tokenizer.decode([i])!r:<8}",
        "no loss" if label < 0 else f"must say {label} {tokenizer.decode([label])!r}",
    )

# %% [markdown]
# ## A batch
# One visit uses a few parts of a sample, drawn before anything is decoded: here one of each kind. Parts of one modality
# then lie together, the longest first, padded; documents are packed into rows. `slot` says which token fills a
# placeholder.

# %%
select = Select(english=0.5)
visited = [decode_sample(select(sample, seed=i)) for i, sample in enumerate(samples.values())]
batch = Pipeline(tokenizer=tokenizer, patchify=patchify, row_length=128).batch(visited)
for modality, stream in batch.streams.items():
    valid = f"{int(stream.valid.sum())} of {stream.valid.numel()} valid"
    print(f"{modality}: values{list(stream.values.shape)}, {valid}, of samples {stream.owner.tolist()}")
rows = batch.rows
print(f"rows{list(rows.ids.shape)}: {len(rows.owner)} documents, {(rows.document >= 0).float().mean():.0%} filled")
print(f"{int((rows.slot >= 0).sum())} placeholders, a loss on {int((rows.labels >= 0).sum())} places")

# %% [markdown]
# ## The order is a pure function
# Position 1,000,000 is known without the 999,999 before it: nothing is stored, nothing replayed, and a run can go on at
# any step with any number of ranks and workers.

# %%
order = Order(shards.sources, None, seed=0)
for position in (0, 1, 2, 1_000_000):
    source, index = order.at(position)
    print(f"position {position:,}: {source} number {index}, {shards.key_of(shards.locate(source, index))}")
again = Order(shards.sources, None, seed=0)
step = global_batch(step=7, batch_size=8)
assert [again.at(p) for p in step] == [order.at(p) for p in step]
print("step 7 sees positions", step.tolist())
for rank in range(2):
    print(f"    rank {rank} of 2:", stripe(step, rank, world=2, accumulate=1, micro=0).tolist())
met = {order.at(position) for position in range(len(shards))}
print(f"the first {len(shards):,} positions meet {len(met):,} samples: each once")
