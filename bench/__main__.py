"""``python -m bench [--quick] [NAME ...]``: print every figure that README gives."""

from __future__ import annotations

import argparse
import importlib

from .measuring import machine

NAMES = ("kernels", "speed", "curves", "startup", "overhead", "log")


def main() -> None:
    """Run the chosen measurements and print them as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all unless given"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions, for a first look")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(
            f"there is no measurement {sorted(unknown)[0]!r}; there are: {', '.join(NAMES)}"
        )
    print(f"Measured on {machine()}.")
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"{__package__}.{name}")
        print(f"\n## {name}\n", flush=True)
        text = module.main(quick=arguments.quick)
        for part in [text] if isinstance(text, str) else text:
            print(part, flush=True)


if __name__ == "__main__":
    main()
