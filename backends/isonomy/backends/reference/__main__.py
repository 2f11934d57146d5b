"""Ask for a second opinion: ``python -m isonomy.backends.reference MODEL``.

Exit status 0: all logits are equal, as bits. 1: they are not. 2: there is no second opinion.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from isonomy.backends import reference
from isonomy.backends.local import checkpoint, shipped
from isonomy.backends.local.config import architecture
from isonomy.sdk.errors import IsonomyError


def main(arguments: list[str] | None = None) -> int:
    """Compare the engine with transformers' graph on random token ids, and say what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m isonomy.backends.reference",
        description="Compare the engine's logits with those of transformers' model graph, run on "
        "the canonical operations: bit for bit.",
    )
    parser.add_argument("model", help="a checkpoint's folder, or 'demo'")
    parser.add_argument(
        "--tokens", type=_whole, default=300, help="how many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="of the random ids")
    parser.add_argument("--weights", choices=["int8"], help="quantise the weights first, in both")
    given = parser.parse_args(arguments)
    folder = shipped.FOLDER if given.model == shipped.NAME else Path(given.model)
    path = folder / checkpoint.CONFIG
    try:
        vocab = architecture(path.read_bytes(), path, given.tokens).vocab
        ids = np.random.default_rng(given.seed).integers(0, vocab, given.tokens)
        difference = reference.compare(folder, ids, weights=given.weights)
    except (IsonomyError, OSError) as error:
        print(f"no second opinion: {error}", file=sys.stderr)
        return 2
    if difference is not None:
        print(f"different: {difference}")
        return 1
    print(f"equal: {given.tokens} positions, {given.tokens * vocab} logits, every bit")
    return 0


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
