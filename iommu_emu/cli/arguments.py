"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse


def seconds(text: str) -> float:
    """Parse a time limit in s, more than 0; argparse names this function in its message."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value
