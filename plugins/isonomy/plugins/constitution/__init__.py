"""Constitutions: answers judged by principles with precedence, mended, and ordered.

`Constitution` is the check; `Principle` one of its laws. See `check` for what it does at which
stage, `laws` for the format of its files, `precedence` for how candidates are compared, `judge` for
how a judgement comes about, and `prompts` for what the judge is told.
"""

from .check import Constitution
from .laws import Principle

__all__ = ["Constitution", "Principle"]
