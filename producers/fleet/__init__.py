"""The fleet: who works, what is away, and why a job is not running."""

from producers.fleet.diagnose import diagnose
from producers.fleet.facts import Answer, Blocker, Facts, Place, Rate, Standing
from producers.fleet.gather import gather, why
from producers.fleet.lookout import Lookout
from producers.fleet.tenants import Used, allow, disallow, tenants
from producers.fleet.view import Fleet, Seen, fold

__all__ = [
    "Answer",
    "Blocker",
    "Facts",
    "Fleet",
    "Lookout",
    "Place",
    "Rate",
    "Seen",
    "Standing",
    "Used",
    "allow",
    "diagnose",
    "disallow",
    "fold",
    "gather",
    "tenants",
    "why",
]
