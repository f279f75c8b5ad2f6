"""The pages for people, and the guard before every request."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from received_study import QUIET_S, SmallNode, outcome_of, variant, write_small_study
from starlette.middleware.base import BaseHTTPMiddleware

from dicom_node.states import JobState
from dicom_node.web import pages
from dicom_node.web.app import create_app
from dicom_node.web.guard import COOKIE, MAX_FORM_BYTES, SESSION_S, Guard, local_path

HERE = "http://127.0.0.1:8080"
TOKEN = "a-long-random-token-of-the-test"
HEALTH: dict[str, Any] = {
    "status": "degraded",
    "checks": {"listener": "ok", "disk": "ok", "destinations": {"PACS": "nothing listens there"}},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root of a node with two DWI: one result is withheld, one is being sent."""
    folder = tmp_path_factory.mktemp("web")
    study = write_small_study(folder / "study")
    node = SmallNode(folder / "root")
    node.receive([*study.reference_files, *study.dwi_files])
    node.receive(variant(study.dwi_files, folder / "7", 7))
    node.after(QUIET_S + 1)
    for verdict in ("reject", "pass"):
        (job_id,) = node.workers.running()
        node.spool.result_dir(node.workers.tasks[job_id].name).mkdir()
        node.workers.end(job_id, outcome_of(node.workers.tasks[job_id], verdict))
        node.after(1)
        node.after(1)
    node.ledger.close()
    shutil.rmtree(folder / "root" / "instances")
    return folder / "root"


@pytest.fixture
def node(prepared: Path, tmp_path: Path) -> SmallNode:
    return SmallNode(shutil.copytree(prepared, tmp_path / "root"))


@pytest.fixture
def client(node: SmallNode) -> Iterator[TestClient]:
    with TestClient(application(node), base_url=HERE, follow_redirects=False) as client:
        yield client


def application(node: SmallNode, token: str | None = None) -> Any:
    return create_app(
        node.ledger, node.spool, lambda: HEALTH, destinations=("PACS",), token=token, title="DWICORR"
    )


def number_of(node: SmallNode, state: JobState) -> int:
    return next(job.id for job in node.jobs() if job.state is state)


def form_token(page: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


# -------------------------------------------------------------------- pages


def test_the_status_page_tells_checks_counts_and_jobs(client: TestClient, node: SmallNode) -> None:
    page = client.get("/").text
    for text in ("DWICORR", "nothing listens there", "withheld", "not good enough", "PACS", "sending"):
        assert text in page
    assert page.index('href="/jobs/2"') < page.index('href="/jobs/1"')  # the newest first
    only = client.get("/", params={"state": "withheld"}).text
    assert f'href="/jobs/{number_of(node, JobState.SENDING)}"' not in only


def test_pages_lead_to_older_jobs_until_there_are_none(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "JOBS_A_PAGE", 1)
    first = client.get("/").text
    assert 'href="/?before=2"' in first
    assert 'href="/jobs/2"' not in client.get("/?before=2").text
    assert "No diffusion series" in client.get("/?before=1").text


def test_the_review_page_shows_what_waits_for_a_person(client: TestClient, node: SmallNode) -> None:
    number = number_of(node, JobState.WITHHELD)
    page = client.get("/review").text
    assert f'action="/jobs/{number}/release"' in page
    assert f"/jobs/{number_of(node, JobState.SENDING)}/" not in page
    assert "/qc.png" not in page  # there is no picture of it
    job = node.ledger.job(number)
    (node.spool.result_dir(job.result or "") / "qc.png").write_bytes(b"\x89PNG")
    assert f'src="/api/jobs/{number}/qc.png"' in client.get("/review").text


def test_the_review_page_gives_each_sentence_of_a_verdict_a_line(client: TestClient, node: SmallNode) -> None:
    judged = [{"code": "one", "text": "It lies 6 mm off."}, {"code": "two", "text": "Nothing was moved."}]
    with node.ledger.transaction() as db:
        db.execute("UPDATE jobs SET figures = ?", (json.dumps({"verdict": {"reasons": judged}}),))
    page = client.get("/review").text
    assert "<li>It lies 6 mm off.</li><li>Nothing was moved.</li>" in page
    assert "the correction was judged not good enough to send:</p>" in page


def test_what_was_withdrawn_waits_for_nobody_and_has_no_button(client: TestClient, node: SmallNode) -> None:
    number = number_of(node, JobState.SENDING)
    fields = {"form_token": form_token(client.get("/review").text)}
    assert client.post(f"/jobs/{number}/withdraw", data=fields).status_code == 303
    assert f'href="/jobs/{number}"' not in client.get("/review").text
    page = client.get(f"/jobs/{number}").text
    assert "withdrawn by" in page
    assert "<form" not in page


def test_withdrawing_takes_a_second_press_that_says_what_it_does(client: TestClient, node: SmallNode) -> None:
    number = number_of(node, JobState.SENDING)
    with node.ledger.transaction() as db:
        db.execute("UPDATE jobs SET state = 'sent' WHERE id = ?", (number,))
    page = client.get(f"/jobs/{number}").text
    button = page.index(f'action="/jobs/{number}/withdraw"')
    assert (
        page.rindex("<details>", 0, button)
        < page.index("cannot be undone")
        < button
        < page.index("</details>")
    )


def test_the_series_page_calls_a_series_by_words_and_not_by_codes(
    client: TestClient, node: SmallNode
) -> None:
    page = client.get("/series").text
    assert "<td>diffusion</td>" in page
    assert "<td>dwi</td>" not in page


def test_a_job_has_a_page_with_its_reference_and_its_events(client: TestClient, node: SmallNode) -> None:
    page = client.get(f"/jobs/{number_of(node, JobState.SENDING)}").text
    for text in ("the only suitable series", "What happened", "Withhold", "pending"):
        assert text in page


def test_a_job_that_is_not_there_is_told_on_a_page(client: TestClient) -> None:
    answer = client.get("/jobs/77")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "There is no job 77 on this node" in answer.text


def test_series_pages_go_from_the_newest_to_the_oldest_without_gap(
    client: TestClient, node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SERIES_A_PAGE", 2)
    seen: list[str] = []
    following: str | None = "/series"
    while following:
        page = client.get(following).text
        seen += re.findall(r'<td class="one">\S+ <code title="([0-9.]+)">', page)
        found = re.search(r'href="(/series\?[^"]+)"', page)
        following = html.unescape(found[1]) if found else None
    rows = node.ledger.all_series()
    newest_first = sorted(rows, key=lambda row: (row.last_at, row.series_uid), reverse=True)
    assert seen == [row.series_uid for row in newest_first]


def test_every_page_answers(client: TestClient) -> None:
    for path in ("/", "/review", "/series", "/jobs/1", "/login", "/static/style.css", "/metrics"):
        assert client.get(path).status_code == 200, path
    for path in ("/jobs/77", f"/jobs/{2**80}", "/?before=x", "/?state=x", f"/series?uid={'1' * 99}"):
        assert client.get(path).status_code in (404, 422), path


def test_text_from_outside_is_escaped(client: TestClient, node: SmallNode) -> None:
    with node.ledger.transaction() as db:
        db.execute("UPDATE jobs SET reason_text = '<script>alert(1)</script>'")
    for path in ("/", "/review", "/jobs/1"):
        page = client.get(path).text
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


# -------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        ("release", JobState.WITHHELD, JobState.SENDING),
        ("retry", JobState.WITHHELD, JobState.QUEUED),
        ("withhold", JobState.SENDING, JobState.WITHHELD),
    ],
)
def test_a_button_does_what_it_says_and_the_event_tells_from_where(
    client: TestClient, node: SmallNode, act: str, before: JobState, after: JobState
) -> None:
    number = number_of(node, before)
    fields = {"form_token": form_token(client.get("/review").text), "next": "/review"}
    answer = client.post(f"/jobs/{number}/{act}", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/review")
    assert node.ledger.job(number).state is after
    assert node.ledger.events(f"job/{number}")[-1].who == "web:testclient"


def test_the_api_decides_too_and_answers_with_the_job(client: TestClient, node: SmallNode) -> None:
    number = number_of(node, JobState.WITHHELD)
    assert client.post(f"/api/jobs/{number}/release").json()["state"] == "sending"
    again = client.post(f"/api/jobs/{number}/release")
    assert again.status_code == 409
    assert "only withheld jobs" in again.json()["detail"]
    assert client.post("/api/jobs/77/retry").status_code == 404
    assert client.post(f"/api/jobs/{number}/delete").status_code == 422


def test_a_decision_that_came_too_late_is_told(client: TestClient, node: SmallNode) -> None:
    fields = {"form_token": form_token(client.get("/review").text)}
    answer = client.post(f"/jobs/{number_of(node, JobState.SENDING)}/release", data=fields)
    assert answer.status_code == 409
    assert "only withheld jobs" in answer.text


# -------------------------------------------------------------------- the guard


@pytest.mark.parametrize("fields", [{}, {"form_token": "0" * 64}, {"form_token": "é"}])
def test_a_form_that_the_node_did_not_hand_out_does_nothing(
    client: TestClient, node: SmallNode, fields: dict[str, str]
) -> None:
    number = number_of(node, JobState.WITHHELD)
    assert client.post(f"/jobs/{number}/release", data=fields).status_code == 403
    assert node.ledger.job(number).state is JobState.WITHHELD


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_decides_nothing(
    client: TestClient, node: SmallNode, headers: dict[str, str]
) -> None:
    number = number_of(node, JobState.WITHHELD)
    for path in (f"/jobs/{number}/release", f"/api/jobs/{number}/release"):
        fields = {"form_token": form_token(client.get("/review").text)}
        assert client.post(path, data=fields, headers=headers).status_code == 403
    assert node.ledger.job(number).state is JobState.WITHHELD
    own = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    assert client.post(f"/api/jobs/{number}/release", headers=own).status_code == 200


def test_on_loopback_another_host_name_is_not_answered(client: TestClient) -> None:
    assert client.get("/api/jobs", headers={"Host": "rebound.example"}).status_code == 421
    assert client.get("/api/jobs", headers={"Host": "localhost:8080"}).status_code == 200
    assert client.get("/api/jobs", headers={"Host": "[::1]:8080"}).status_code == 200


def test_a_form_longer_than_ours_is_not_read(client: TestClient) -> None:
    fields = {"form_token": "x", "filler": "y" * MAX_FORM_BYTES}
    assert client.post("/jobs/1/retry", data=fields).status_code == 403


def test_every_answer_forbids_scripts_frames_and_caches(client: TestClient) -> None:
    for path in ("/", "/api/jobs", "/api/jobs/77", "/nowhere", "/metrics", "/login"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"


def test_an_unexpected_error_says_nothing_of_itself(node: SmallNode) -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("Phantom^Head")

    app = create_app(node.ledger, node.spool, broken)
    answer = TestClient(app, base_url=HERE, raise_server_exceptions=False).get("/health")
    assert answer.status_code == 500
    assert "Phantom" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"


def test_with_a_token_a_person_signs_in_once(node: SmallNode) -> None:
    client = TestClient(
        application(node, TOKEN), base_url="https://node.example:8443", follow_redirects=False
    )
    asked = client.get("/review", headers={"Accept": "text/html"})
    assert (asked.status_code, asked.headers["location"]) == (303, "/login?next=/review")
    assert client.post("/login", data={"token": "wrong"}).status_code == 401
    assert client.get("/api/jobs").status_code == 401
    entered = client.post("/login", data={"token": TOKEN, "next": "/review"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/review")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" in cookie
    assert TOKEN not in cookie
    page = client.get("/review")
    assert page.status_code == 200
    assert page.headers["strict-transport-security"]
    number = number_of(node, JobState.WITHHELD)
    fields = {"form_token": form_token(page.text)}
    assert client.post(f"/jobs/{number}/release", data=fields).status_code == 303


@pytest.mark.parametrize("cookie", ["", "x", "9999999999.x.y", "nan.x.y", ".", "é"])
def test_a_made_up_session_opens_nothing(node: SmallNode, cookie: str) -> None:
    client = TestClient(application(node, TOKEN))
    headers = {"Cookie": f"{COOKIE}={cookie}".encode()}
    assert client.get("/api/jobs", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_a_session_ends_when_its_time_is_over() -> None:
    now = [1_000_000.0]
    guard = Guard(TOKEN, clock=lambda: now[0])
    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)

    @app.get("/login")
    def log_in(request: Request, response: Response) -> None:
        guard.open_session(request, response)

    @app.get("/inside")
    def inside() -> None: ...

    client = TestClient(app, base_url="https://node.example")
    client.get("/login")
    assert client.get("/inside").status_code == 200
    now[0] += SESSION_S + 1
    assert client.get("/inside").status_code == 401


@pytest.mark.parametrize(
    "text", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/a\nb"]
)
def test_no_sign_in_leads_to_another_site(text: str) -> None:
    assert local_path(text) == "/"


def test_metrics_are_what_prometheus_reads(client: TestClient, node: SmallNode) -> None:
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    jobs = {sample.labels["state"]: sample.value for sample in families["dicom_node_jobs"].samples}
    assert jobs["withheld"] == jobs["sending"] == 1
    assert families["dicom_node_up"].samples[0].value == 0.5
    (unreachable,) = families["dicom_node_destination_up"].samples
    assert (unreachable.labels, unreachable.value) == ({"destination": "PACS"}, 0.0)
    assert families["dicom_node_deliveries"].samples[0].labels == {"destination": "PACS", "state": "pending"}
    assert families["dicom_node_oldest_unsent_seconds"].samples[0].value >= 0
    assert families["dicom_node_free_bytes"].samples[0].value == pytest.approx(
        node.spool.free_bytes(), rel=0.1
    )
