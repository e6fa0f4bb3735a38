"""What a person reads of a run: `report.html` and the card of the artifact."""

from __future__ import annotations

from attar.report.card import card_text
from attar.report.comparison import write_comparison
from attar.report.page import write_report

__all__ = ["card_text", "write_comparison", "write_report"]
