"""Evaluation: tasks as functions that yield outcomes per example, and the numbers made of them."""

from mmfusion.evaluation.measure import Evaluation, run

__all__ = ["Evaluation", "run"]
