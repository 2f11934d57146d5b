"""The built-in backend: ordinary checkpoints, run bit for bit the same everywhere.

`Local` is all there is to use; see backends/README.md. The modules, each with one idea:

- `config`, `config_keys`: config.json to an architecture, every key accounted for
- `weights`: safetensors, checked and hashed
- `tokenizer`, `template`: messages to ids and back
- `defaults`: generation_config.json and ranges of sampling
- `checkpoint`: all of these loaded, with their digests
- `text`, `sequence`: whole characters, stop strings, one answer and the evidence of its steps
- `engine`, `leading`: all answers together, driven by whoever waits for one
- `prefix`, `drafts`: what was computed before, what may come next
- `forcing`, `scoring`, `perplexity`: known tokens through the model, and how probable they were
- `shipped`: the demo model
"""

from __future__ import annotations

from .backend import Local
from .errors import (
    Corrupt,
    DamagedModel,
    NonFinite,
    NotCovered,
    NoTemplate,
    Overloaded,
    Tampered,
    TooLarge,
    UnusableFormat,
    WrongDraft,
)
from .scoring import Perplexity, Scored

__all__ = [
    "Corrupt",
    "DamagedModel",
    "Local",
    "NoTemplate",
    "NonFinite",
    "NotCovered",
    "Overloaded",
    "Perplexity",
    "Scored",
    "Tampered",
    "TooLarge",
    "UnusableFormat",
    "WrongDraft",
]
