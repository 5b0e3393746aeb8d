"""Attention in three parts that vary on their own: who may look at whom, how it is computed, what is remembered."""
