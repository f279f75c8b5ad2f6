"""Shared fixtures: where the real studies are, and how a test asks for one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

# before torch is imported: parallel tests share the cores, and threads that spin starve each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent


def _data_root() -> Path | None:
    """The folder of the studies: $DICOM_NODE_TEST_DATA, else shared/data beside the checkout."""
    named = os.environ.get("DICOM_NODE_TEST_DATA")
    root = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return root if root.is_dir() else None


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`data_set("uih")` is the unpacked folder of that study; the test is skipped where there is no data."""

    def unpacked(name: str) -> Path:
        root = _data_root()
        if root is None:
            pytest.skip("no test data: set DICOM_NODE_TEST_DATA to the folder with the study archives")
        if (root / name).is_dir():
            return root / name
        if not (root / f"{name}.tar.xz").is_file():
            pytest.skip(f"no test data: {name} is neither a folder nor an archive in DICOM_NODE_TEST_DATA")
        # one copy for all workers of a parallel run: basetemp's parent is shared, each worker's own is not
        base = tmp_path_factory.getbasetemp()
        shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "studies"
        shared.mkdir(exist_ok=True)
        with FileLock(shared / f".{name}.lock"):
            subprocess.run([root / "unpack", shared, name], check=True, stdout=subprocess.DEVNULL)
        return shared / name

    return unpacked
