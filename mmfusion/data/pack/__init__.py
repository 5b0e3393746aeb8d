"""Own data to shards: a table, folders or a published layout -> drafts -> checked -> split -> tars and a manifest."""
