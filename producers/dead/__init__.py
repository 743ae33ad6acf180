"""Dead letters as people see them: read, recognised whoever wrote them, joined with what became of them, filtered."""

from producers.dead.desk import Desk
from producers.dead.filters import Filter
from producers.dead.letter import Letter

__all__ = ["Desk", "Filter", "Letter"]
