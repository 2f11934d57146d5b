"""`Pii`: finds personal data in text, and redacts, masks, hashes, blocks or marks it.

`check` holds the settings and the hooks, `detect` the pass over a text, one module a kind the
recognizers, `treatment` what is put in place of what was found.
"""

from .check import Pii

__all__ = ["Pii"]
