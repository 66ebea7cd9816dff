"""What Prometheus reads: the service's own counters, at the moment of asking. No series grows with the keys."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from statestored import __version__, audit, stdio
from statestored.commands import COMMANDS, Service

# What an engine says of itself in `info`, if it does: the metric's kind, name and help. A text stands for 1, and an
# empty one for 0.
ENGINE_METRICS: dict[str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, str]] = {
    "entries": (GaugeMetricFamily, "statestored_entries", "States stored."),
    "memory": (GaugeMetricFamily, "statestored_memory_bytes", "Memory that the states take, as it is estimated."),
    "max_memory": (GaugeMetricFamily, "statestored_max_memory_bytes", "Where it is reached, nothing new is stored."),
    "namespaces": (GaugeMetricFamily, "statestored_namespaces", "Namespaces that have states."),
    "sessions": (GaugeMetricFamily, "statestored_sessions", "Sessions of clients, in use or left not long ago."),
    "changes_since_snapshot": (
        GaugeMetricFamily,
        "statestored_changes_since_snapshot",
        "Changes that are in no snapshot yet.",
    ),
    "journal_bytes": (GaugeMetricFamily, "statestored_journal_bytes", "Bytes of journal since the last snapshot."),
    "last_snapshot_time": (
        GaugeMetricFamily,
        "statestored_last_snapshot_timestamp_seconds",
        "When the writing of the newest snapshot began; 0 if there is no snapshot.",
    ),
    "last_snapshot_seconds": (
        GaugeMetricFamily,
        "statestored_last_snapshot_duration_seconds",
        "How long the newest snapshot took; 0 until the daemon has written one since its start.",
    ),
    "writes_refused": (
        GaugeMetricFamily,
        "statestored_writes_refused",
        "1 while every write is refused because the data directory has no room, else 0.",
    ),
    "snapshot_failures": (CounterMetricFamily, "statestored_snapshot_failures", "Snapshots that failed."),
}


class Metrics:
    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        calls = {command.name: service.calls[name] for name, command in COMMANDS.items()}
        yield GaugeMetricFamily(
            "statestored_ready", "1 while clients are served, 0 while the daemon loads and stops.", service.ready
        )
        yield _info("statestored_build", "The release that runs.", {"version": __version__})
        yield _by_label("statestored_requests", "Requests executed.", "method", calls)
        yield _by_label("statestored_errors", "Requests refused.", "code", service.errors)
        yield GaugeMetricFamily("statestored_connections", "Connections that are open.", service.connections)
        yield _by_label("statestored_connections_dropped", "Connections closed by us.", "reason", service.dropped)
        yield GaugeMetricFamily(
            "statestored_buffered_bytes", "Requests in part, and answers that were not taken.", service.budget.used
        )
        for name, help_, value in (
            ("statestored_connections_accepted", "Connections accepted.", service.connections_total),
            (
                "statestored_notifications_refused",
                "Notifications refused. Their clients are not told.",
                service.notifications_refused,
            ),
            ("statestored_tokens_refused", "Wrong tokens.", service.access.refused),
            (
                "statestored_tokens_not_looked_at",
                "Tokens from addresses that had to wait, after too many wrong ones.",
                service.access.shut_out,
            ),
            (
                "statestored_log_lines_suppressed",
                "Log lines left out because their reason had a line within the same second.",
                audit.limit.suppressed,
            ),
            (
                "statestored_tls_failures",
                "TLS handshakes that failed.",
                0 if service.tls is None else service.tls.failures,
            ),
            (
                "statestored_log_lines_dropped",
                "Log lines that standard error did not take, or not soon enough.",
                stdio.log_output.dropped,
            ),
        ):
            yield CounterMetricFamily(name, help_, value)
        about_engine = service.engine.info()
        for key, (kind, name, help_) in ENGINE_METRICS.items():
            if key in about_engine:
                yield kind(name, help_, _number(about_engine[key]))


def _number(figure: float | str) -> float:
    return bool(figure) if isinstance(figure, str) else figure


def _by_label(name: str, help_: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, help_, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _info(name: str, help_: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(f"{name}_info", help_, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family
