"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["joined", "limit"]


def joined(argv: Sequence[str], option: str) -> list[str]:
    """Writes ``--sort -created`` as ``--sort=-created``.

    ``argparse`` takes every word that begins with a dash for an option.

    Args:
        argv (sequence of str): The command line.
        option (str): Whose value may begin with one dash.
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1] == option and word.startswith("-") and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def limit(text: str) -> int | None:
    """Reads a number from 1, or ``all``, which is None; as ``type=`` of an option."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number from 1, or all")
    return int(text)
