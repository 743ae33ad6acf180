"""Tenants: their weights and quotas, what is used of them now, and how they are changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

from producers.fleet.lookout import Lookout
from schemas import codec
from schemas.control import Tenant, key
from schemas.errors import InvalidError, NotFoundError, TapeError
from schemas.quota import Tally, tally_name

STORE_S = 3.0
"""How long the store may take to tell what is in use."""
FIELDS = ("weight", "in_flight", "rate", "burst")


@dataclass(frozen=True, slots=True)
class Used:
    """A tenant, and what its jobs have taken of its quota; None where the store did not say in time."""

    tenant: Tenant
    tally: Tally | None

    def row(self) -> dict[str, Any]:
        """Return it as plain data; `waiting` counts those that wait for the rate."""
        said, tally = self.tenant, self.tally
        return {
            "tenant": said.tenant,
            "weight": said.weight,
            "in_flight": said.in_flight,
            "running": tally.in_flight if tally is not None and said.in_flight else None,
            "rate": said.rate,
            "burst": said.depth if said.rate else None,
            "waiting": tally.waiting if tally is not None and said.rate else None,
            "jobs": sorted(tally.running) if tally is not None else [],
            "who": said.who,
            "time": said.time,
        }


def tenants(lookout: Lookout) -> list[Used]:
    """Return every tenant of which anything was said, by name. Raises `UnavailableError`, `AuthError`."""
    known = lookout.fleet().tenants
    found = tallies(lookout, known.values())
    return [Used(said, found.get(name)) for name, said in known.items()]


def allow(lookout: Lookout, name: str, changes: Mapping[str, Any], who: str = "") -> Tenant:
    """Change a tenant's weight and quota, by `FIELDS`; None takes a limit away, what is not named stays.

    Raises `InvalidError` (TAPE-1001, 1002, 1010) that names the wrong field, `UnavailableError`, `AuthError`.
    """
    before = lookout.fleet().tenants.get(name)
    told = before.model_dump(include=set(FIELDS)) if before is not None else {}
    told |= {field: value for field, value in changes.items() if value is not None or field != "weight"}
    if told.get("burst") is not None and told.get("rate") is None:
        if "burst" in changes:
            raise InvalidError("a burst is one of a rate", code="TAPE-1010", field="burst", hint="give the rate, too")
        told["burst"] = None
    said = codec.parse(Tenant, told | {"tenant": name, "time": lookout.now(), "who": who})
    lookout.publish(said)
    return said


def disallow(lookout: Lookout, name: str) -> None:
    """Take a tenant's weight and quota back. Raises `NotFoundError` (TAPE-2001) if it has none."""
    known = lookout.fleet().tenants
    if name not in known:
        hint = f"tenants: {', '.join(sorted(known))}" if known else "no tenant has any"
        raise NotFoundError("nothing was said of this tenant", field=name, hint=hint)
    lookout.withdraw(key(known[name]))


def tallies(lookout: Lookout, wanted: Iterable[Tenant]) -> dict[str, Tally]:
    """Return what is used of quotas, as far as the store says so in time; nothing is where there is no object."""
    found: dict[str, Tally] = {}

    def ask(name: str) -> None:
        with suppress(TapeError):
            try:
                found[name] = codec.parse(Tally, lookout.store().read(tally_name(name)))
            except NotFoundError:
                found[name] = Tally(tenant=name)

    asking = [Thread(target=ask, args=(one.tenant,), daemon=True) for one in wanted if one.limited]
    until = time.monotonic() + STORE_S
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(found)
