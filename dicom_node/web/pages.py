"""The pages for people: status, one job, review of what waits for a decision, series, sign-in.

Plain forms and no script: the pages work in any browser, and nothing can be injected that would run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates

from dicom_node import __version__
from dicom_node.decisions import NotNow
from dicom_node.explain import KINDS
from dicom_node.jobs import job_document, jobs_in_words, series_document
from dicom_node.ledger import IllegalChange, Ledger, UnknownJob
from dicom_node.records import Job
from dicom_node.spool import Spool
from dicom_node.states import JobState
from dicom_node.web.acts import Act, Acts, offered, withdrawn
from dicom_node.web.guard import Guard, local_path, read_form

FOLDER = FilePath(__file__).parent
JOBS_A_PAGE = 25
SERIES_A_PAGE = 50
TO_REVIEW = (JobState.WITHHELD, JobState.FAILED)
REFRESH_S = 15

JobNumber = Annotated[int, Path(ge=0, lt=2**63)]
Before = Annotated[int | None, Query(ge=0, lt=2**63)]


class Pages:
    """Fills the templates."""

    def __init__(self, guard: Guard, health: Callable[[], dict[str, Any]], title: str) -> None:
        self._guard = guard
        self._health = health
        self._title = title
        self._templates = Jinja2Templates(FOLDER / "templates")
        self._templates.env.filters["moment"] = lambda text: text.replace("T", " ").removesuffix("+00:00")
        self._templates.env.filters["short"] = lambda uid: f"…{uid[-12:]}" if len(uid) > 14 else uid
        self._templates.env.filters["kind"] = lambda series_class: KINDS.get(series_class, series_class)
        self._templates.env.globals.update(offered=offered, version=__version__)

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """One page, with what all of them show."""
        common = {
            "title": self._title,
            "status": self._health()["status"],
            "form_token": self._guard.form_token(request),
        }
        return self._templates.TemplateResponse(request, f"{name}.html", common | values, status)


def add_pages(
    app: FastAPI,
    ledger: Ledger,
    spool: Spool,
    health: Callable[[], dict[str, Any]],
    acts: Acts,
    guard: Guard,
    title: str,
) -> None:
    """Add the pages to the application."""
    pages = Pages(guard, health, title)

    @app.get("/", include_in_schema=False)
    def status_page(request: Request, state: JobState | None = None, before: Before = None) -> Response:
        jobs = ledger.latest_jobs([state] if state else (), before=before, limit=JOBS_A_PAGE)
        return pages.page(
            request,
            "status",
            checks=health()["checks"],
            counts={name: ledger.count_jobs().get(name, 0) for name in JobState},
            jobs=jobs_in_words(ledger, jobs),
            state=state,
            older=jobs[-1].id if len(jobs) == JOBS_A_PAGE else None,
            refresh_s=REFRESH_S if before is None else None,
        )

    @app.get("/review", include_in_schema=False)
    def review_page(request: Request, before: Before = None) -> Response:
        jobs = ledger.latest_jobs(TO_REVIEW, before=before, limit=JOBS_A_PAGE)
        older = jobs[-1].id if len(jobs) == JOBS_A_PAGE else None
        return pages.page(request, "review", jobs=list(_cases(ledger, spool, jobs)), older=older)

    @app.get("/jobs/{job_id}", include_in_schema=False)
    def job_page(request: Request, job_id: JobNumber) -> Response:
        try:
            job = job_document(ledger, job_id)
        except UnknownJob:
            text = f"There is no job {job_id} on this node."
            return pages.page(request, "message", 404, heading="Not found", text=text)
        return pages.page(request, "job", job=job | {"picture": _has_picture(spool, ledger.job(job_id))})

    @app.get("/series", include_in_schema=False)
    def series_page(
        request: Request, before: float | None = None, uid: Annotated[str, Query(max_length=64)] = ""
    ) -> Response:
        rows = ledger.latest_series(before=None if before is None else (before, uid), limit=SERIES_A_PAGE)
        older = rows[-1] if len(rows) == SERIES_A_PAGE else None
        return pages.page(request, "series", series=series_document(rows), older=older)

    @app.get("/static/style.css", include_in_schema=False)
    def style() -> Response:
        return FileResponse(FOLDER / "static" / "style.css", media_type="text/css")

    _add_buttons(app, pages, acts, guard)
    _add_sign_in(app, pages, guard)


def _add_buttons(app: FastAPI, pages: Pages, acts: Acts, guard: Guard) -> None:
    @app.post("/jobs/{job_id}/{act}", include_in_schema=False)
    async def act_on_job(request: Request, job_id: JobNumber, act: Act) -> Response:
        fields = await guard.form(request)
        if fields is None:
            text = "This form is no longer valid. Go back, load the page again and press the button again."
            return pages.page(request, "message", 403, text=text)
        try:
            acts.do(act, job_id, request.client.host if request.client else "")
        except (NotNow, IllegalChange) as error:
            return pages.page(request, "message", 409, text=str(error))
        return RedirectResponse(local_path(fields.get("next", f"/jobs/{job_id}")), 303)


def _add_sign_in(app: FastAPI, pages: Pages, guard: Guard) -> None:
    @app.get("/login", include_in_schema=False)
    def login_page(request: Request, next: str = "/") -> Response:
        return pages.page(request, "login", next=local_path(next), wrong=False)

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        fields = await read_form(request)
        following = local_path(fields.get("next", "/"))
        if not guard.is_token(fields.get("token", "")):
            return pages.page(request, "login", 401, next=following, wrong=True)
        response = RedirectResponse(following, 303)
        guard.open_session(request, response)
        return response


def _cases(ledger: Ledger, spool: Spool, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
    """What waits for a decision, with its picture and each sentence of its verdict."""
    for job in jobs:
        (document,) = jobs_in_words(ledger, [job])
        if not withdrawn(document):
            verdict = json.loads(job.figures).get("verdict", {}) if job.figures else {}
            judged = [reason["text"] for reason in verdict.get("reasons", ())]
            yield document | {"picture": _has_picture(spool, job), "judged": judged}


def _has_picture(spool: Spool, job: Job) -> bool:
    return bool(job.result) and (spool.result_dir(str(job.result)) / "qc.png").is_file()
