"""YAML that came with a folder: plain values only, whatever is in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """Plain values only, and no aliases: ten lines of them can stand for a billion nodes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if getattr(self.peek_event(), "tag", None) is not None:  # !!omap, !!set: what looks into dicts and lists misses
            raise yaml.YAMLError("tags (!!name) are not allowed")
        return super().compose_node(parent, index)


def plain_yaml(path: Path) -> Any:
    """What a YAML file of plain values holds. Raises ValueError with the reason in one line."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes; this is no configuration of ours")
    try:
        return yaml.load(path.read_bytes(), _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(f"cannot be read: {' '.join(str(error).split())[:200]}") from error
