"""What a run looks like to people: report.html and the model card."""

from mmfusion.report.card import card
from mmfusion.report.examples import Example, answered, collect
from mmfusion.report.html import facts_of, write

__all__ = ["Example", "answered", "card", "collect", "facts_of", "write"]
