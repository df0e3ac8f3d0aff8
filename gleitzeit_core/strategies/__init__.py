"""Strategies: what one is, and those that come with the core."""

from gleitzeit_core.strategies.base import WAIT, Candidate, NoOptions, Strategy, View, Wait

__all__ = ["WAIT", "Candidate", "NoOptions", "Strategy", "View", "Wait"]
