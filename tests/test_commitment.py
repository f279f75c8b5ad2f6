"""Storage commitment: what an archive promises, denies, forgets to say, or says at a bad moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from instances import mr_dataset
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID
from pynetdicom import AE, build_role, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    MRImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)
from received_study import Clock

from dicom_node.association import Peer, Timeouts
from dicom_node.commitment import ask
from dicom_node.delivery import DAY_S, REFUSED_COMMITMENTS, DeliveryLoop
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener, ListenerSettings
from dicom_node.records import Delivery, InstanceRecord
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState, JobState

RESULT = "result-1"
UIDS = tuple(f"1.2.826.0.1.3680043.10.1.2.{number}" for number in range(1, 6))
TIMEOUT_S = 3600.0


class Archive:
    """A stub SCP of storage and commitment; how it answers is a test's to say."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.asked: list[Dataset] = []
        self.lacks: frozenset[str] = frozenset()
        self.action_status = 0x0000
        self.report_here = True  # on the association of the request
        self.report_statuses: list[int] = []
        self._stopped = False
        entity = AE("ARCHIVE")
        entity.add_supported_context(MRImageStorage)
        entity.add_supported_context(Verification)
        entity.add_supported_context(StorageCommitmentPushModel)
        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)],
        )  # fmt: skip
        self.port = int(self._server.server_address[1])
        self.peer = Peer("ARCHIVE", "127.0.0.1", self.port, "NODE", Timeouts(5, 5, 5, 5))

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._server.shutdown()

    def _store(self, event: Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _action(self, event: Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.action_status == 0 and self.report_here:
            # as archives do: the report leaves as soon as the response has
            threading.Timer(0.05, self._report_on, [event.assoc, self.asked[-1]]).start()
        return self.action_status, None

    def _report_on(self, association: object, asked: Dataset) -> None:
        self.report_statuses.append(report(association, asked, self.lacks))


def report(association: object, asked: Dataset, lacks: frozenset[str] = frozenset(), uid: str = "") -> int:
    """Send an N-EVENT-REPORT; the status of its answer, -1 when there was none."""
    information = Dataset()
    information.TransactionUID = uid or asked.TransactionUID
    here = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID not in lacks]
    gone = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in lacks]
    for item in gone:
        item.FailureReason = 0x0112
    information.ReferencedSOPSequence = Items(here)
    if gone:
        information.FailedSOPSequence = Items(gone)
    status, _ = association.send_n_event_report(  # type: ignore[attr-defined]
        information, 2 if gone else 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return int(status.Status) if "Status" in status else -1


@pytest.fixture
def archive() -> Iterator[Archive]:
    running = Archive()
    yield running
    running.stop()


class Node:
    """A ledger with one job whose five images are to be delivered, and the listener beside it."""

    def __init__(self, root: Path, archive: Archive) -> None:
        self.clock = Clock()
        self.spool = Spool(root, 0)
        self.ledger = Ledger(root / "ledger.sqlite", clock=self.clock)
        derived = self.spool.result_dir(RESULT) / "derived"
        derived.mkdir(parents=True)
        for uid in UIDS:
            mr_dataset(sop_uid=uid).save_as(derived / f"{uid}.dcm", enforce_file_format=True)
        self.ledger.record_instance(
            InstanceRecord("1.1", 1, "1", "1.0", "1.2", "1.2.1", "00", "instances/1", 1, "a", self.clock())
        )
        self.ledger.complete_series("1.0", "{}", "p", seen_last_at=self.clock())
        self.job = self.ledger.create_job(self.ledger.series("1")[0], 4).id
        self.ledger.change_job(self.job, JobState.QUEUED)
        self.ledger.change_job(self.job, JobState.CORRECTING, result=RESULT)
        self.ledger.change_job(self.job, JobState.CORRECTED)
        self.ledger.start_delivery(self.job, ["archive"], expected=JobState.CORRECTED)
        self.loop = DeliveryLoop(
            "archive", archive.peer, self.ledger, self.spool,
            give_up_days=7, clock=self.clock, commitment_timeout_s=TIMEOUT_S,
        )  # fmt: skip
        self.loop._promise_wait_s = 2.0
        self.listener = Listener(
            ListenerSettings(
                "NODE",
                root,
                self.ledger.path,
                bind="127.0.0.1",
                port=0,
                min_free_bytes=0,
                takes_commitments=True,
            ),
            self.spool,
            self.ledger,
        )
        self.listener.start()

    def stop(self) -> None:
        self.listener.stop()
        self.ledger.close()

    @property
    def delivery(self) -> Delivery:
        (found,) = self.ledger.deliveries(self.job)
        return found

    @property
    def state(self) -> str:
        return f"{self.ledger.job(self.job).state}/{self.delivery.state}"

    def work(self) -> None:
        """Everything that is due now."""
        for _ in range(20):
            if not (self.loop.deliver_one() or self.loop.commit_one()):
                return


@pytest.fixture
def node(tmp_path: Path, archive: Archive) -> Iterator[Node]:
    running = Node(tmp_path / "root", archive)
    yield running
    running.stop()


def calling(node: Node, *, role: bool) -> Callable[[], object]:
    """An association that an archive opens to the node's listener, with or without role selection."""
    entity = AE("ARCHIVE")
    entity.add_requested_context(StorageCommitmentPushModel)
    roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if role else []

    def opened() -> object:
        association = entity.associate("127.0.0.1", node.listener.port, ae_title="NODE", ext_neg=roles)
        assert association.is_established
        return association

    return opened


# -------------------------------------------------------------------- the lucky paths


def test_an_archive_that_promises_at_once_is_believed(node: Node, archive: Archive) -> None:
    node.work()
    assert node.state == "committed/committed"
    assert archive.report_statuses == [0x0000]
    assert sorted(item.ReferencedSOPInstanceUID for item in archive.asked[0].ReferencedSOPSequence) == sorted(
        UIDS
    )


@pytest.mark.parametrize("role", [True, False], ids=["with role selection", "without"])
def test_an_archive_that_calls_back_later_is_believed(node: Node, archive: Archive, role: bool) -> None:
    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    assert node.state == "sent/sent"
    association = calling(node, role=role)()
    if not role:  # as archives do that do not negotiate roles: they just report
        association.accepted_contexts[0]._as_scp = True  # type: ignore[attr-defined]
    assert report(association, archive.asked[0]) == 0x0000
    association.release()  # type: ignore[attr-defined]
    assert node.state == "committed/committed"


def test_what_was_asked_in_two_requests_is_committed_when_both_are(
    node: Node, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.delivery.INSTANCES_PER_REQUEST", 3)
    node.work()
    assert [len(asked.ReferencedSOPSequence) for asked in archive.asked] == [3, 2]
    assert node.state == "committed/committed"


# -------------------------------------------------------------------- the unlucky ones


def test_what_an_archive_lacks_is_sent_again_and_asked_for_again(node: Node, archive: Archive) -> None:
    archive.lacks = frozenset(UIDS[:2])
    assert node.loop.deliver_one()
    assert node.loop.commit_one()
    assert node.state == "sending/pending"
    assert node.delivery.reason_code == "not-committed"
    assert "0x0112" in (node.delivery.reason_text or "")
    archive.lacks, archive.stored = frozenset(), []
    node.work()
    assert sorted(archive.stored) == sorted(UIDS[:2])
    assert sorted(
        item.ReferencedSOPInstanceUID for item in archive.asked[-1].ReferencedSOPSequence
    ) == sorted(UIDS[:2])
    assert node.state == "committed/committed"


def test_an_archive_that_never_has_them_ends_the_job_with_a_reason(node: Node, archive: Archive) -> None:
    archive.lacks = frozenset(UIDS[:2])
    node.work()
    assert node.state == "failed/failed"
    assert len(archive.asked) == REFUSED_COMMITMENTS
    job = node.ledger.job(node.job)
    assert job.reason_code == "not-committed"
    assert "lacks some of them each time" in (job.reason_text or "")


def test_an_archive_that_says_nothing_is_asked_again_after_its_time_and_then_given_up(
    node: Node, archive: Archive
) -> None:
    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    node.clock.now += TIMEOUT_S - 1
    node.work()
    assert len(archive.asked) == 1
    node.clock.now += 2
    node.work()
    assert len(archive.asked) == 2
    assert archive.asked[0].TransactionUID != archive.asked[1].TransactionUID
    node.clock.now += 7 * DAY_S
    node.work()
    assert node.state == "failed/failed"
    assert "said nothing within 7 days" in (node.ledger.job(node.job).reason_text or "")


def test_a_promise_for_an_earlier_request_counts(node: Node, archive: Archive) -> None:
    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    node.clock.now += TIMEOUT_S + 1
    node.work()
    association = calling(node, role=True)()
    assert report(association, archive.asked[0]) == 0x0000
    assert node.state == "committed/committed"
    assert report(association, archive.asked[1]) == 0x0000  # the later one changes nothing any more
    association.release()  # type: ignore[attr-defined]
    assert node.state == "committed/committed"


def test_a_transaction_that_we_never_asked_is_refused(node: Node, archive: Archive) -> None:
    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    association = calling(node, role=True)()
    assert report(association, archive.asked[0], uid="2.25.99") == 0x0115
    association.release()  # type: ignore[attr-defined]
    assert node.state == "sent/sent"


def test_an_archive_that_refuses_the_request_is_asked_again_soon(node: Node, archive: Archive) -> None:
    archive.action_status = 0x0213
    node.work()
    assert node.state == "sent/sent"
    assert "0x0213" in (node.delivery.reason_text or "")
    archive.action_status = 0x0000
    node.clock.now += 60
    node.work()
    assert node.state == "committed/committed"


def test_an_archive_that_is_gone_is_a_problem_in_words(archive: Archive) -> None:
    archive.stop()
    asked = ask(archive.peer, {"2.25.1": {"1.2": "1.3"}}, lambda answer: True, wait_s=0.1)
    assert asked.problem is not None
    assert "cannot be reached" in asked.problem.text


def test_a_promise_that_could_not_be_written_down_is_not_acknowledged(node: Node, archive: Archive) -> None:
    """The archive must say it again, because nobody else remembers it."""

    def fails(answer: object) -> bool:
        raise OSError("no space left")

    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    node.listener._record_answer = fails  # type: ignore[method-assign]
    association = calling(node, role=True)()
    assert report(association, archive.asked[0]) == 0x0110
    association.release()  # type: ignore[attr-defined]


def test_a_destination_that_is_no_longer_asked_leaves_its_jobs_sent(node: Node, archive: Archive) -> None:
    archive.report_here = False
    node.loop._promise_wait_s = 0.1
    node.work()
    node.ledger.waive_commitment("archive")
    assert node.delivery.commitment == 0
    assert node.state == "sent/sent"
    assert node.delivery.state is DeliveryState.SENT


# -------------------------------------------------------------------- as SCP


def test_we_promise_nobody_to_keep_their_images(node: Node) -> None:
    entity = AE("SCANNER")
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", node.listener.port, ae_title="NODE")
    wanted = Dataset()
    wanted.TransactionUID = UID("2.25.5")
    status, _ = association.send_n_action(
        wanted, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    assert status.Status == 0x0124


def test_without_a_destination_that_commits_the_context_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    ledger = Ledger(root / "ledger.sqlite")
    settings = ListenerSettings("NODE", root, ledger.path, bind="127.0.0.1", port=0, min_free_bytes=0)
    listener = Listener(settings, Spool(root, 0), ledger)
    listener.start()
    entity = AE("SCANNER")
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", listener.port, ae_title="NODE")
    accepted = [context.abstract_syntax for context in association.accepted_contexts]
    association.release()
    listener.stop()
    ledger.close()
    assert accepted == [Verification]
