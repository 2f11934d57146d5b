"""Measurements: what README's figures come from. Run ``python -m bench --help``."""
