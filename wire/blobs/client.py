"""The `minio` client, made to go by the store's clock where this machine's is wrong.

S3 refuses what is signed more than 15 minutes off (`RequestTimeTooSkewed`; a HEAD says no more than 403). The answer
carries the store's own time (`Date`, RFC 9110 §6.6.1), by which the request is signed again, and all that follow.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import structlog
from minio import Minio, time
from minio.error import S3Error

_LOG = structlog.get_logger("tickertape.store")
SKEW = timedelta(minutes=5)
"""A clock that is off by less is none of a refusal's reasons."""


class Client(Minio):  # type: ignore[misc]
    """`Minio` whose requests are dated by the store's clock once that refused this machine's."""

    _ahead = timedelta(0)

    def _build_headers(self, *args: Any, **kwargs: Any) -> tuple[Any, datetime]:
        headers, date = super()._build_headers(*args, **kwargs)
        date -= self._ahead
        headers["x-amz-date"] = time.to_amz_date(date)
        return headers, date

    def get_presigned_url(self, *args: Any, **kwargs: Any) -> Any:
        """Return a URL that is dated like the requests."""
        if self._ahead:
            kwargs["request_date"] = time.utcnow() - self._ahead
        return super().get_presigned_url(*args, **kwargs)

    def _url_open(self, *args: Any, **kwargs: Any) -> Any:
        dated = self._ahead  # another thread's refusal may mend it before ours comes
        try:
            return super()._url_open(*args, **kwargs)
        except S3Error as error:
            if error.response.status != 403 or not self._set(error.response.headers.get("Date"), dated):
                raise
            return super()._url_open(*args, **kwargs)

    def _set(self, said: str | None, dated: timedelta) -> bool:
        """Take over the time that the store told, if the request was dated far from it."""
        with suppress(ValueError, TypeError):
            ahead = time.utcnow() - parsedate_to_datetime(str(said))
            if abs(ahead - dated) > SKEW:
                _LOG.warning("requests are dated by the store's clock", ahead_s=ahead.total_seconds())
                self._ahead = ahead
                return True
        return False
