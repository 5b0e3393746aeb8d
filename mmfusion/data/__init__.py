"""Shards to batches: read, decode, augment, cut into patches, pack. Imports only `mmfusion.types`."""
