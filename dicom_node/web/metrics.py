"""What Prometheus reads at /metrics: counts and states, and no names of people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from dicom_node import __version__
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool, SpoolError
from dicom_node.states import DeliveryState, JobState


class NodeCollector(Collector):
    """Reads ledger and disk when it is asked; each query goes by an index."""

    def __init__(self, ledger: Ledger, spool: Spool, health: Any) -> None:
        self._ledger = ledger
        self._spool = spool
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """All metrics, at this moment."""
        yield InfoMetricFamily("dicom_node", "Version of the node", {"version": __version__})
        yield from self._checks()
        jobs = GaugeMetricFamily("dicom_node_jobs", "Jobs by state", labels=["state"])
        counts = self._ledger.count_jobs()
        for state in JobState:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield from self._deliveries()
        yield GaugeMetricFamily(
            "dicom_node_open_associations",
            "Associations that have brought instances and are open",
            self._ledger.count_open_associations(),
        )
        try:
            free_bytes = self._spool.free_bytes()
        except SpoolError:
            free_bytes = 0
        yield GaugeMetricFamily("dicom_node_free_bytes", "Free space of the storage root", free_bytes)

    def _checks(self) -> Iterator[GaugeMetricFamily]:
        document = self._health()
        words = "1: ok, 0.5: degraded or starting, 0: failing"
        yield GaugeMetricFamily("dicom_node_up", words, _UP[document["status"]])
        family = GaugeMetricFamily("dicom_node_check", "1: ok, 0: not", labels=["check"])
        for name, state in document["checks"].items():
            if not isinstance(state, dict):
                family.add_metric([name], float(state == "ok"))
        yield family
        reachable = GaugeMetricFamily(
            "dicom_node_destination_up", "1: answered when last spoken to", labels=["destination"]
        )
        for name, state in document["checks"].get("destinations", {}).items():
            reachable.add_metric([name], float(state == "ok"))
        yield reachable

    def _deliveries(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "dicom_node_deliveries", "Deliveries by destination and state", labels=["destination", "state"]
        )
        oldest = GaugeMetricFamily(
            "dicom_node_oldest_unsent_seconds",
            "Age of the oldest delivery that has not arrived",
            labels=["destination"],
        )
        unsent = (DeliveryState.PENDING, DeliveryState.SENDING)
        since: dict[str, float] = {}
        for count in self._ledger.count_deliveries():
            family.add_metric([count.destination, count.state], count.number)
            if count.state in unsent:
                since[count.destination] = min(count.since, since.get(count.destination, count.since))
        for destination, at in since.items():
            oldest.add_metric([destination], max(0.0, self._ledger.now() - at))
        yield family
        yield oldest


_UP = {"ok": 1.0, "starting": 0.5, "degraded": 0.5, "failing": 0.0}


def exposition(collector: NodeCollector) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)
