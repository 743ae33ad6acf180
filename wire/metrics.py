"""Metrics: one meter for a process, read by a collector (OTLP) or as a page of Prometheus text.

What is measured is up to who asks for the meter (`workers.meter`). Without a collector and a page nothing is read.
"""

from __future__ import annotations

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from wire.settings import Settings
from wire.telemetry import bounded, no_exporter

EVERY_S = 15.0
"""How often a collector is told."""
PAGE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one process."""

    def __init__(self, provider: MeterProvider, registry: CollectorRegistry) -> None:
        self._provider, self._registry = provider, registry

    @property
    def meter(self) -> Meter:
        """Where instruments are made."""
        return self._provider.get_meter("tickertape")

    def page(self) -> tuple[str, bytes]:
        """Return what Prometheus reads: content type and text. Empty unless the page was asked for."""
        return PAGE, generate_latest(self._registry)

    def close(self) -> None:
        """Tell a collector the last numbers; a dead one is waited for `wire.telemetry.CLOSE_S` at most."""
        bounded(self._provider.shutdown)


def configure(settings: Settings, service: str, *, page: bool = False) -> Metrics:
    """Set up metrics: told to the collector if there is one, and readable as a page if asked for.

    Raises `SetupError` (TAPE-8003) when a collector is configured but the exporter's package is missing.
    """
    readers: list[MetricReader] = []
    registry = CollectorRegistry()
    if settings.otlp_endpoint is not None:
        readers.append(_told(settings.otlp_endpoint))
    if page:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        readers.append(PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry))
    provider = MeterProvider(
        metric_readers=readers,
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    return Metrics(provider, registry)


def _told(endpoint: str) -> MetricReader:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise no_exporter() from error
    exporter = OTLPMetricExporter(endpoint=endpoint.rstrip("/") + "/v1/metrics", timeout=5)
    return PeriodicExportingMetricReader(exporter, export_interval_millis=EVERY_S * 1000)
