"""The `mmfusion` command: one thin file a verb, heavy imports inside the verbs."""
