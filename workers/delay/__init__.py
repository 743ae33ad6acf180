"""What happens at its time: delayed jobs move on to their topics, recurring jobs are submitted (ADR 3)."""

from workers.delay.mover import Mover

__all__ = ["Mover"]
