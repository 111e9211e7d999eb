"""What a conversion leaves out, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from .episode import DatasetNotWritten


@dataclass
class LeftOut:
    """allowed: recordings and episodes that cannot be converted are left out; else the first one ends the conversion.
    found: where, and why."""

    allowed: bool = False
    found: list[dict[str, str]] = field(default_factory=list)

    def add(self, where: str, error: Exception) -> None:
        """Call it in the handler of the error, which is raised again unless it may be left out."""
        if not self.allowed or isinstance(error, DatasetNotWritten):
            raise error
        self.found.append({"where": where, "why": str(error).removeprefix(f"{where}: ")})
