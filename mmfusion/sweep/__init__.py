"""Sweeps: a space in YAML is searched by Optuna, each trial a run of `mmfusion train` in a process of its own."""
