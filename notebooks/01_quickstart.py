# %% [markdown]
# # Quickstart
# What a trained run can be asked. Train one first: `uv run mmfusion train`. Then give its folder here, or in the
# environment as `MMFUSION_RUN`; without one, the newest run of the quickstart is taken.

# %%
import json
import os
from pathlib import Path

import numpy as np

import mmfusion
from mmfusion.data.decode import decode_sample
from mmfusion.data.shards import ShardSet

run = Path(os.environ.get("MMFUSION_RUN") or max(Path("runs/quickstart").iterdir()))
model = mmfusion.load(run)
print(run, "reads", ", ".join(model.modalities), "with", f"{sum(model.parameter_counts.values()):,}", "parameters")

# %% [markdown]
# ## Names for a picture
# Pictures of the other vendor, which training has never seen, against the names of a few hundred of them.

# %%
test = [s for s in ShardSet(Path("data_prep/sample"), "test") if s.source == "emoji-twitter"][::8]
names = [next(p.text or "" for p in s.of("text") if p.lang == "en") for s in test]
pictures = [decode_sample(s).of("image")[0] for s in test]
scores = model.embed(image=pictures) @ model.embed(text=names).T
best = np.argsort(-scores, axis=1)[:, :3]
for i in range(5):
    print(f"{names[i]}: " + ", ".join(f"{names[j]} ({scores[i, j]:.2f})" for j in best[i]))
print(f"first of {len(names)}: {(best[:, 0] == np.arange(len(names))).mean():.0%}, chance {1 / len(names):.1%}")

# %% [markdown]
# ## A caption, in two languages

# %%
for language in ("en", "fr"):
    print(language, model.generate(image=pictures[:3], lang=language))

# %% [markdown]
# ## What was measured
# Every metric has its n, interval, chance and baselines.

# %%
for row in json.loads((run / "metrics.json").read_text()):
    print(f"{row['task']:<18} {row['metric']:<34} {row['value']:.3f}  n={row['n']}  chance {row['chance']:.3f}")
