"""The model card: the README.md of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from mmfusion.api import Model
from mmfusion.data.shards import ShardEntry
from mmfusion.evaluation.measure import Row
from mmfusion.report.html import environment


def card(name: str, data: Sequence[ShardEntry], metrics: Sequence[Row], model: Model) -> str:
    """The card as Markdown. `data` is the manifest, of which the training shards are named with their licences;
    `metrics` is empty while the model is not evaluated yet."""
    trained = [entry for entry in data if entry.split == "train"]
    return (
        environment(html=False)
        .get_template("card.md.j2")
        .render(
            name=name,
            parameters=model.parameter_counts,
            total=sum(model.parameter_counts.values()),
            millions=lambda count: f"{count / 1e6:.2f}",
            modalities=model.modalities,
            sources=[
                (source, samples, ", ".join(sorted(entry.licences)) or "not stated")
                for entry in trained
                for source, samples in entry.sources.items()
            ],
            languages=sorted({language for entry in trained for language in entry.languages}),
            metrics=metrics,
            lineage=model.lineage,
        )
    )
