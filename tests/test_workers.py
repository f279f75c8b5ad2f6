"""The compute workers: killed, stopped, away and back; a job that was with one goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from certificates import make_certificates
from instances import write_series
from structlog.testing import capture_logs

from dicom_node.compute import CorrectionTask, Refusal
from dicom_node.config_sections import LogSettings
from dicom_node.derive import DerivePolicy
from dicom_node.log import only_known_values
from dicom_node.recipe import Recipe
from dicom_node.workers import Finished, Scheduler, Workers, serve_worker

LOG = LogSettings(level="error")


def eventually(condition: Callable[[], object], limit_s: float = 60.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def task(root: Path, files: list[Path]) -> CorrectionTask:
    """One that a worker refuses at once: its images are no diffusion series."""
    return CorrectionTask(
        "a-result", root, tuple(files), tuple(files), "T2", Recipe(device="cpu"), DerivePolicy()
    )


def long_task(root: Path) -> CorrectionTask:
    """One whose input never comes: a named pipe that nobody writes to."""
    pipe = root / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    return task(root, [pipe])


def ended(workers: Workers) -> Finished:
    found: list[Finished] = []
    assert eventually(lambda: found.extend(workers.finished()) or found)
    return found[0]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    scratch = tmp_path_factory.mktemp("scratch")
    workers = Workers(scheduler=None, count=1, threads=1, scratch=scratch, log=LOG)
    yield workers
    workers.close()


def worker_processes() -> list[psutil.Process]:
    """The worker processes below this one; a resource tracker is none."""
    return [child for child in psutil.Process().children(recursive=True) if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def test_a_correction_is_handed_over_and_its_refusal_comes_back(local: Workers, tmp_path: Path) -> None:
    assert local.free() == 1
    local.submit(1, 1, task(tmp_path, write_series(tmp_path / "series", 2)))
    assert local.running() == {1}
    finished = ended(local)
    assert finished.job_id == 1
    assert isinstance(finished.outcome, Refusal)
    assert not local.running()


def test_a_worker_keeps_the_memory_of_one_tensor_for_the_next(local: Workers) -> None:
    """Dask would have glibc give it back each time: more seconds of page faults than of computation."""
    assert eventually(lambda: local.free() == 1)
    environments = [process.environ() for process in worker_processes()]
    inherited = os.environ.get("MALLOC_TRIM_THRESHOLD_")
    assert environments
    assert all(one.get("MALLOC_TRIM_THRESHOLD_") == inherited for one in environments)


def test_a_worker_that_is_killed_gives_its_job_back_and_another_takes_its_place(
    local: Workers, tmp_path: Path
) -> None:
    assert eventually(lambda: local.free() == 1)
    local.submit(2, 1, long_task(tmp_path))
    time.sleep(1.0)
    for process in worker_processes():
        process.send_signal(signal.SIGKILL)
    finished = ended(local)
    assert (finished.job_id, finished.lost) == (2, True)
    assert eventually(lambda: local.free() == 1)


def test_a_worker_that_dask_gave_up_is_replaced(
    local: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is killed while it starts: its nanny ends, and would leave the node without any for good."""
    monkeypatch.setattr("dicom_node.workers.MISSING_S", 2.0)
    assert eventually(lambda: local.free() == 1)
    local.submit(5, 1, long_task(tmp_path))
    given_up = local._cluster
    assert given_up is not None
    given_up.scale(0)
    assert eventually(lambda: local.alive() == 0)
    assert eventually(lambda: local.free() == 1 or local._cluster is not given_up)
    assert ended(local).lost
    assert eventually(lambda: local.free() == 1)
    local.submit(6, 1, task(tmp_path, write_series(tmp_path / "series", 1)))
    assert ended(local).job_id == 6


def test_a_job_that_takes_too_long_is_stopped_and_its_worker_is_free_again(
    local: Workers, tmp_path: Path
) -> None:
    assert eventually(lambda: local.free() == 1)
    local.submit(3, 1, long_task(tmp_path))
    time.sleep(1.0)
    assert local.overdue(0.5) == [3]
    local.stop_job(3)
    assert not local.running()
    assert eventually(lambda: local.free() == 1)
    local.submit(4, 1, task(tmp_path, write_series(tmp_path / "series", 1)))
    assert ended(local).job_id == 4


def test_nobody_without_our_certificate_reaches_the_local_scheduler(local: Workers) -> None:
    from distributed import Client

    assert local._cluster is not None
    address = local._cluster.scheduler_address
    assert address.startswith("tls://127.0.0.1")
    with pytest.raises((OSError, TypeError)):  # TypeError: Dask's words for a missing TLS context
        Client(address, timeout=3, set_as_default=False)


# -------------------------------------------------------------------- elsewhere


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_worker_names_the_scheduler_that_it_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.workers.CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr("dicom_node.workers.RECONNECT_S", 0.1)
    nobody = Scheduler(f"tcp://127.0.0.1:{free_port()}")
    stop = threading.Event()
    with capture_logs() as told:
        serving = threading.Thread(
            target=serve_worker, args=(nobody,), kwargs={"scratch": tmp_path, "gpu": False, "stop": stop}
        )
        serving.start()
        heard = eventually(lambda: told, 15)
        stop.set()
        serving.join()
    assert heard
    assert told[0]["event"] == "the compute scheduler cannot be reached"
    assert only_known_values(None, "", told[0])["scheduler"] == nobody.address


@pytest.mark.slow
def test_a_scheduler_elsewhere_may_go_and_come_back_and_its_job_is_given_back(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    ca, certificate, key = (certificates / name for name in ("ca.pem", "node.pem", "node.key"))
    address = f"tls://127.0.0.1:{free_port()}"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"node: {{ae_title: NODE}}\nstorage: {{root: {tmp_path / 'root'}}}\n"
        f"correction: {{scheduler: '{address}', "
        f"scheduler_tls: {{ca: {ca}, certificate: {certificate}, key: {key}}}}}\n"
    )
    scheduler = (
        "dask", "scheduler", "--host", "tls://127.0.0.1", "--port", address.rsplit(":", 1)[1],
        "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
        "--tls-ca-file", str(ca), "--tls-cert", str(certificate), "--tls-key", str(key),
    )  # fmt: skip
    elsewhere = Scheduler(address, ca, certificate, key)
    workers = Workers(scheduler=elsewhere, count=1, threads=1, scratch=tmp_path, log=LOG)
    assert workers.alive() == 0  # nobody there yet, and nobody waits for it
    with running("dicom-node", "--config", str(config), "worker", address):
        with running(*scheduler):
            assert eventually(lambda: workers.free() == 1)
            workers.submit(1, 1, long_task(tmp_path))
        finished = ended(workers)
        assert (finished.job_id, finished.lost) == (1, True)
        assert workers.free() == 0
        with running(*scheduler):
            assert eventually(lambda: workers.free() == 1, 90)
            workers.submit(2, 1, task(tmp_path, write_series(tmp_path / "series", 2)))
            assert isinstance(ended(workers).outcome, Refusal)
    workers.close()
