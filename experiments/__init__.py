"""Experiments: one folder each, with the command, its rows, a plot and what was expected."""
