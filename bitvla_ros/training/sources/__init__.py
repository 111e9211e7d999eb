"""Readers of recordings made elsewhere. Each yields demonstrations in this package's conventions (docs/data.md)."""

from __future__ import annotations


class ConversionError(ValueError):
    """A recording that cannot become demonstrations. Says which file, episode and frame, what was expected and what to do."""
