"""The model card: the README.md of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmfusion.data.shards import ShardEntry
from mmfusion.evaluation.measure import Row
from mmfusion.report.html import environment


def card(
    *,
    name: str,
    parameters: Mapping[str, int],
    data: Sequence[ShardEntry],
    lineage: Mapping[str, Any],
    metrics: Sequence[Row] = (),
) -> str:
    """The card as Markdown. `parameters` counts weights by part of the model; `data` is the manifest, of which the
    training shards are named with their licences; `metrics` is empty while the model is not evaluated yet."""
    trained = [entry for entry in data if entry.split == "train"]
    return (
        environment(html=False)
        .get_template("card.md.j2")
        .render(
            name=name,
            parameters=parameters,
            total=sum(parameters.values()),
            millions=lambda count: f"{count / 1e6:.2f}",
            modalities=sorted({modality for entry in trained for modality, n in entry.modalities.items() if n}),
            sources=[
                (source, samples, ", ".join(sorted(entry.licences)) or "not stated")
                for entry in trained
                for source, samples in entry.sources.items()
            ],
            languages=sorted({language for entry in trained for language in entry.languages}),
            metrics=metrics,
            lineage=lineage,
        )
    )
