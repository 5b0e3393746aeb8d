"""One encoder a modality: Patches in, Tokens out. Each has `modality`, `width` and `merge` (patches per token)."""
