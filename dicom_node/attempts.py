"""One attempt to send something to a destination: when the next one is due, and why this one failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dicom_node.scu import OnStatus, Peer, StoreResult
from rules.reasons import Code, Reason, reason

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 3600.0
JITTER = 0.2  # of the delay, so that several nodes do not call a PACS that comes back in the same second
DAY_S = 86400.0
REFUSED_ATTEMPTS = 3  # a refusal for what an instance is may still be a PACS in a bad moment

Store = Callable[[Peer, Sequence[Path], OnStatus], StoreResult]


def retry_delay_s(attempts: int, jitter: float) -> float:
    """Seconds until the next attempt after `attempts` failed ones: 5 s doubling to 1 h.

    jitter: −1…1, spread over ±20 %.
    """
    exponent = min(max(attempts - 1, 0), 32)
    delay = float(min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**exponent))
    return delay * (1 + JITTER * jitter)


def why_not_complete(result: StoreResult) -> Reason:
    """The reason of an attempt that did not bring everything across."""
    if result.problem is not None:
        code = Code.UNREACHABLE if result.problem.transient else Code.REFUSED
        return reason(code, result.problem.text)
    return reason(Code.REFUSED, result.refused[0].text if result.refused else "it gave no status")
