"""mmfusion: multimodal models of pictures, sound, sensor series and text, from one configuration tree.

`import mmfusion` is cheap; the verbs below import what they need when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmfusion.api import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name in ("load", "Model"):
        from mmfusion import api

        return getattr(api, name)
    raise AttributeError(f"module 'mmfusion' has no attribute {name!r}")
