"""Short texts to compare models on, for want of one from their own field.

`plain.txt` is English prose; `demo.txt` are dialogues of the demo model's kind that it was not
trained on (`demo_model.world.held_out`).
"""

from __future__ import annotations

from pathlib import Path


def text(*, demo: bool = False) -> str:
    """Return the text for the demo model, or for any other."""
    name = "demo.txt" if demo else "plain.txt"
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
