from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from received_study import QUIET_S, SmallNode, outcome_of, variant, write_small_study

from dicom_node.jobs import job_document, jobs_document
from dicom_node.states import JobState
from dicom_node.web.app import create_app

PATIENT = ("PHANTOM", "DEMO-0001", "19700101")  # name, ID and birth date of the phantom


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> SmallNode:
    """Three DWI of one patient: job 1 is being sent, 2 is withheld and 3 has begun."""
    folder = tmp_path_factory.mktemp("web")
    study = write_small_study(folder / "study")
    node = SmallNode(folder / "root")
    node.receive([*study.reference_files, *study.dwi_files])
    for number in (7, 8):
        node.receive(variant(study.dwi_files, folder / str(number), number))
    node.after(QUIET_S + 1)
    for verdict in ("pass", "reject"):
        (job_id,) = node.workers.running()
        result = node.spool.result_dir(node.workers.tasks[job_id].name)
        result.mkdir()
        (result / "qc.png").write_bytes(b"\x89PNG picture")
        node.workers.end(job_id, outcome_of(node.workers.tasks[job_id], verdict))
        node.after(1)
        node.after(1)
    return node


HERE = "http://127.0.0.1:8080"
HEALTHY: dict[str, Any] = {"status": "ok", "checks": {"listener": "ok"}}


@pytest.fixture
def client(node: SmallNode) -> Iterator[TestClient]:
    with TestClient(create_app(node.ledger, node.spool, lambda: HEALTHY), base_url=HERE) as client:
        yield client


def number_of(node: SmallNode, state: JobState) -> int:
    return next(job.id for job in node.jobs() if job.state is state)


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 200), ("degraded", 200), ("failing", 503), ("starting", 503)]
)
def test_health_answers_by_status(node: SmallNode, status: str, code: int) -> None:
    app = create_app(node.ledger, node.spool, lambda: HEALTHY | {"status": status})
    client = TestClient(app, base_url=HERE)
    answer = client.get("/health")
    assert answer.status_code == code
    assert answer.json() == {"status": status, "checks": {"listener": "ok"}}


def test_jobs_are_the_document_of_the_command_line(client: TestClient, node: SmallNode) -> None:
    answer = client.get("/api/jobs")
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(jobs_document(node.ledger)))
    first = answer.json()["jobs"][0]
    assert set(first) >= {
        "id",
        "state",
        "reason",
        "series_uid",
        "series_number",
        "reference_series_uid",
        "verdict",
        "attempts",
        "created",
        "changed",
        "deliveries",
    }


def test_a_reason_has_a_code_and_a_sentence(client: TestClient, node: SmallNode) -> None:
    job = client.get(f"/api/jobs/{number_of(node, JobState.WITHHELD)}").json()
    assert job["reason"]["code"] == "verdict"
    assert "not good enough" in job["reason"]["text"]


def test_a_delivery_tells_destination_state_and_attempts(client: TestClient, node: SmallNode) -> None:
    (delivery,) = client.get(f"/api/jobs/{number_of(node, JobState.SENDING)}").json()["deliveries"]
    assert (delivery["destination"], delivery["state"], delivery["attempts"]) == ("PACS", "pending", 0)
    assert delivery["next_attempt_at"]


def test_pages_follow_one_another_without_gap(client: TestClient, node: SmallNode) -> None:
    seen, after, pages = [], 0, 0
    while after is not None:
        page = client.get("/api/jobs", params={"limit": 2, "after": after}).json()
        seen += [job["id"] for job in page["jobs"]]
        after, pages = page["next"], pages + 1
    assert seen == [job.id for job in node.jobs()]
    assert pages == 2


def test_jobs_are_filtered_by_state(client: TestClient, node: SmallNode) -> None:
    found = client.get("/api/jobs", params={"state": ["withheld", "sending"]}).json()["jobs"]
    assert sorted(job["state"] for job in found) == ["sending", "withheld"]
    assert client.get("/api/jobs", params={"state": "failed"}).json() == {"jobs": [], "next": None}


@pytest.mark.parametrize("query", ["state=nonsense", "limit=0", "limit=100000", "after=-1"])
def test_a_wrong_query_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/jobs?{query}").status_code == 422


def test_one_job_comes_with_its_choice_and_events(client: TestClient, node: SmallNode) -> None:
    number = number_of(node, JobState.SENDING)
    document = client.get(f"/api/jobs/{number}").json()
    assert document == json.loads(json.dumps(job_document(node.ledger, number)))
    assert [event["to"] for event in document["events"]][:2] == ["waiting", "queued"]
    assert document["choice"][0]["accepted"]


@pytest.mark.parametrize("path", ["/api/jobs/77", "/api/jobs/77/qc.png"])
def test_an_unknown_job_is_a_404_with_a_sentence(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("There is no job 77")


def test_the_picture_of_a_corrected_job(client: TestClient, node: SmallNode) -> None:
    answer = client.get(f"/api/jobs/{number_of(node, JobState.SENDING)}/qc.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == b"\x89PNG picture"


def test_a_job_without_picture_says_so(client: TestClient, node: SmallNode) -> None:
    answer = client.get(f"/api/jobs/{number_of(node, JobState.CORRECTING)}/qc.png")
    assert answer.status_code == 404
    assert "no picture" in answer.json()["detail"]


def test_series_tell_what_the_rules_took_them_for(client: TestClient, node: SmallNode) -> None:
    series = client.get("/api/series").json()["series"]
    assert sorted(one["class"] for one in series) == ["anatomical", "dwi", "dwi", "dwi"]
    first = client.get("/api/series", params={"limit": 3}).json()
    rest = client.get("/api/series", params={"limit": 3, "after": first["next"]}).json()
    assert [one["series_uid"] for one in (*first["series"], *rest["series"])] == [
        one["series_uid"] for one in series
    ]


def test_nothing_answers_with_a_patient(client: TestClient, node: SmallNode) -> None:
    paths = ["/health", "/api/jobs", "/api/series", "/openapi.json"]
    paths += [f"/api/jobs/{job.id}" for job in node.jobs()]
    for path in (*paths, "/api/jobs/77", "/nowhere", "/api/jobs/text"):
        answer = client.get(path).text
        assert not [word for word in PATIENT if word in answer], path


def test_the_interface_describes_itself(client: TestClient) -> None:
    assert "/api/jobs" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    "path", ["/api/jobs", "/api/jobs/1", "/api/jobs/1/qc.png", "/api/series", "/openapi.json"]
)
def test_with_a_token_only_health_is_open(node: SmallNode, path: str) -> None:
    client = TestClient(create_app(node.ledger, node.spool, lambda: HEALTHY, token="secret"))
    assert client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert "web.token_file" in answer.json()["detail"]
    assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code in (200, 404)
