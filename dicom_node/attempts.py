"""One attempt to send something to a destination: when the next one is due, and why this one failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dicom_node.association import Peer
from dicom_node.scu import OnStatus, StoreResult
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
    transient = result.problem is not None and result.problem.transient
    return reason(Code.UNREACHABLE if transient else Code.REFUSED, said(result))


def said(result: StoreResult) -> str:
    """What the destination said when not everything came across; of many different answers the first few."""
    if result.problem is not None:
        return result.problem.text
    answers = list(dict.fromkeys(one.text for one in result.refused))
    return "; ".join(answers[:3]) or "it gave no status"
