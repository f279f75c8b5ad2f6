"""receiving → complete: when nothing more of a series is to be expected, and what its instances say then.

A series is complete when it is quiet; how long it must have been depends on how it arrived. Its headers are
read once, then. Many series may become quiet at once, after a rebuild or when a whole archive is sent again:
one look reads for a few seconds only, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from dicom_node.headers import InstanceFacts, Unreadable, summarise
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.records import Growth
from dicom_node.spool import Spool
from rules.classify import classify
from rules.facts import SeriesFacts
from rules.site import Override

# Multiples of assembly.series_quiet_s (20 s by default).
ABORTED_QUIET_FACTOR = 4  # a scanner that aborted will send the rest soon
OPEN_QUIET_FACTOR = 9  # consoles keep one association open all exam
INCOMPLETE_QUIET_FACTOR = 45  # missing slices may still come
CLOCK_SET_BACK_S = 60.0  # an instance that arrived this far in the future: the clock was wrong then
READ_S = 5.0  # of one look, for headers; a series that was begun is read to its end
ALIVE_EVERY = 100  # headers

FACTS = TypeAdapter(SeriesFacts)
log = get_logger(__name__)


class Assembly:
    """Completes what is quiet and whole."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        *,
        quiet_s: float,
        overrides: tuple[Override, ...],
        clock: Callable[[], float],
        read: Callable[[Path], InstanceFacts],
        alive: Callable[[], None],
    ) -> None:
        """alive: called after each hundred headers, which may take seconds on a slow disk."""
        self._ledger = ledger
        self._spool = spool
        self._quiet_s = quiet_s
        self._overrides = overrides
        self._clock = clock
        self._read = read
        self._alive = alive
        # facts of series that are quiet but lack slices, by (series, time of last instance)
        self._seen: dict[tuple[str, float], SeriesFacts] = {}

    def complete_quiet(self) -> frozenset[str]:
        """Complete what is quiet and whole; returns the studies in which something is still arriving."""
        busy = set()
        now = self._clock()
        read_until: float | None = None  # set by the first, so that each look reads at least one
        for growth in self._ledger.growing():
            age_s = now - growth.last_at
            if age_s < -CLOCK_SET_BACK_S:
                log.warning("the clock was set back", seconds=-age_s)
                self._ledger.forget_future()
                return frozenset({growth.study_uid for growth in self._ledger.growing()})
            if not self._quiet(growth, age_s):
                busy.add(growth.study_uid)
                continue
            facts = self._known(growth)
            if facts is None:
                if read_until is not None and time.monotonic() > read_until:
                    busy.add(growth.study_uid)
                    continue
                read_until = read_until or time.monotonic() + READ_S
                facts = self._remember(growth)
            if not self._whole(facts, age_s) or not self._complete(growth, facts):
                busy.add(growth.study_uid)  # its by-products must not be taken for the only copy
        return frozenset(busy)

    def _quiet(self, growth: Growth, age_s: float) -> bool:
        if growth.open_associations:
            return age_s >= OPEN_QUIET_FACTOR * self._quiet_s
        return age_s >= (ABORTED_QUIET_FACTOR if growth.aborted else 1) * self._quiet_s

    def _whole(self, facts: SeriesFacts, age_s: float) -> bool:
        """Whether nothing is missing of what would be corrected, or it has been waited for long enough."""
        waited = age_s >= INCOMPLETE_QUIET_FACTOR * self._quiet_s
        return waited or not (facts.incomplete and classify(facts, self._overrides).corrects)

    def _complete(self, growth: Growth, facts: SeriesFacts) -> bool:
        """False when another instance has arrived meanwhile."""
        done = self._ledger.complete_series(
            growth.series_uid,
            FACTS.dump_json(facts).decode(),
            _patient(facts),
            seen_last_at=growth.last_at,
        )
        if done:
            self._seen.pop((growth.series_uid, growth.last_at), None)
            log.info("series complete", series=growth.series_uid, instances=facts.instances)
        return done

    # ---------------------------------------------------------------- headers

    def _known(self, growth: Growth) -> SeriesFacts | None:
        return self._seen.get((growth.series_uid, growth.last_at))

    def _remember(self, growth: Growth) -> SeriesFacts:
        self._seen = {key: facts for key, facts in self._seen.items() if key[0] != growth.series_uid}
        facts = self._seen[growth.series_uid, growth.last_at] = self._read_facts(growth)
        return facts

    def _read_facts(self, growth: Growth) -> SeriesFacts:
        readable, unreadable = [], 0
        for number, record in enumerate(self._ledger.instances_of(growth.series_uid), start=1):
            try:
                readable.append(self._read(self._spool.root / record.path))
            except Unreadable:
                unreadable += 1
            if number % ALIVE_EVERY == 0:
                self._alive()
        if unreadable:
            log.warning("unreadable instances", series=growth.series_uid, count=unreadable)
        if not readable:
            return SeriesFacts(
                series_uid=growth.series_uid,
                study_uid=growth.study_uid,
                geometry_problem="none of its images could be read",
            )
        facts = replace(summarise(readable), unreadable=unreadable)
        issued = any(self._ledger.was_issued(instance.sop_instance_uid) for instance in readable[:1])
        if issued and not facts.own_output:
            return replace(facts, own_output="this node issued its UIDs")
        return facts


def _patient(facts: SeriesFacts) -> str:
    """Tells patients apart without naming them."""
    return hashlib.sha256(facts.patient_key.encode()).hexdigest()[:32] if facts.patient_key else ""
