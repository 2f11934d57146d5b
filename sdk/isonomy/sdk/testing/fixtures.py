"""Pytest fixtures for tests of checks; pytest finds them wherever Isonomy is installed.

Nothing of Isonomy is imported before a fixture is used, so that other projects' tests pay nothing.
"""

from __future__ import annotations
