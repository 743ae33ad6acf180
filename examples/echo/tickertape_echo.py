"""The kind `echo`: gives back what it was sent, after a pause if asked. A kind of your own needs no more than this."""

from __future__ import annotations

import threading
import time

from pydantic import Field

from schemas.model import Strict
from schemas.outcome import Succeeded
from workers.context import Context
from workers.kinds import kind


class Echo(Strict):
    """What to say, and how long to wait before saying it."""

    text: str = ""
    seconds: float = Field(default=0.0, ge=0, le=3600)


@kind("echo", params=Echo, isolation="thread")
def echo(context: Context, params: Echo) -> Succeeded:
    """Return the text. Looks every 50 ms whether it should stop."""
    until = time.monotonic() + params.seconds
    while (left := until - time.monotonic()) > 0:
        context.check()
        threading.Event().wait(min(left, 0.05))
    return Succeeded(result={"text": params.text})
