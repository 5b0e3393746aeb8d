"""Encoders, fusion and decoder: tensors in, tensors out, on torch and timm alone."""
