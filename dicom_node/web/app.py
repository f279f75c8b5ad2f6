"""The HTTP interface: JSON for programs, pages for people, metrics. Identifiers only: no patient data.

The pages stand on the same documents as the JSON. Who may ask is in `guard`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware

from dicom_node import __version__
from dicom_node.decisions import NotNow
from dicom_node.health import STARTING
from dicom_node.jobs import PAGE, job_document, jobs_document, series_document
from dicom_node.ledger import IllegalChange, Ledger, UnknownJob
from dicom_node.log import get_logger
from dicom_node.spool import Spool
from dicom_node.states import JobState
from dicom_node.web.acts import Act, Acts
from dicom_node.web.guard import HEADERS, Guard
from dicom_node.web.metrics import NodeCollector, exposition
from dicom_node.web.pages import add_pages

Health = Callable[[], dict[str, Any]]
MAX_PAGE = 1000
JobNumber = Annotated[int, Path(ge=0, lt=2**63)]  # what SQLite can hold

log = get_logger(__name__)


def create_app(
    ledger: Ledger,
    spool: Spool,
    health: Health,
    *,
    destinations: tuple[str, ...] = (),
    token: str | None = None,
    title: str = "",
) -> FastAPI:
    """The application over a running node; `health()` gives `{"status": …, "checks": {…}}`.

    destinations: where released results go. With a `token`, everything but /health asks for it. title: the
    node's AE title, shown on the pages.
    """
    app = FastAPI(title="dicom-node", version=__version__, docs_url=None, redoc_url=None)
    guard = Guard(token)
    acts = Acts(ledger, destinations)
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    _add_errors(app)
    _add_api(app, ledger, spool, health, acts)
    collector = NodeCollector(ledger, spool, health)

    @app.get("/metrics")
    def get_metrics() -> Response:
        return Response(exposition(collector), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_pages(app, ledger, spool, health, acts, guard, title)
    return app


def _add_errors(app: FastAPI) -> None:
    """What becomes of an error: one sentence, and never the exception's own text."""

    @app.exception_handler(UnknownJob)
    async def unknown(_: Request, error: UnknownJob) -> Response:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(NotNow)
    async def not_now(_: Request, error: NotNow) -> Response:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(IllegalChange)
    async def illegal(_: Request, error: IllegalChange) -> Response:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        log.error("a page failed", exc_info=error)
        return JSONResponse({"detail": "The node met an error; its log tells more."}, 500, HEADERS)


def _add_api(app: FastAPI, ledger: Ledger, spool: Spool, health: Health, acts: Acts) -> None:
    @app.get("/health")
    def get_health(response: Response) -> dict[str, Any]:
        document = health()
        response.status_code = 503 if document["status"] in ("failing", STARTING) else 200
        return document

    @app.get("/api/jobs")
    def get_jobs(
        state: Annotated[list[JobState] | None, Query()] = None,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    ) -> dict[str, Any]:
        return jobs_document(ledger, state or (), after=after, limit=limit)

    @app.get("/api/jobs/{job_id}")
    def get_job(job_id: JobNumber) -> dict[str, Any]:
        return job_document(ledger, job_id)

    @app.get("/api/jobs/{job_id}/qc.png")
    def get_qc(job_id: JobNumber) -> FileResponse:
        job = ledger.job(job_id)
        picture = spool.result_dir(job.result) / "qc.png" if job.result else None
        if picture is None or not picture.is_file():
            raise HTTPException(404, f"Job {job_id} has no picture: it has not been corrected.")
        return FileResponse(picture, media_type="image/png")

    @app.post("/api/jobs/{job_id}/{act}")
    def post_act(request: Request, job_id: JobNumber, act: Act) -> dict[str, Any]:
        acts.do(act, job_id, request.client.host if request.client else "")
        return job_document(ledger, job_id)

    @app.get("/api/series")
    def get_series(
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    ) -> dict[str, Any]:
        rows = ledger.all_series(after=after, limit=limit)
        return {
            "series": series_document(rows),
            "next": rows[-1].series_uid if len(rows) == limit else None,
        }
