"""The HTTP interface: health and jobs as JSON. Identifiers only: no patient data passes through here."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from dicom_node import __version__
from dicom_node.jobs import PAGE, job_document, jobs_document, series_document
from dicom_node.ledger import Ledger, UnknownJob
from dicom_node.spool import Spool
from dicom_node.states import JobState

Health = Callable[[], dict[str, Any]]
MAX_PAGE = 1000


def create_app(ledger: Ledger, spool: Spool, health: Health, *, token: str | None = None) -> FastAPI:
    """The application over a running node; `health()` gives `{"status": …, "checks": {…}}`.

    With a `token`, everything but /health asks for `Authorization: Bearer TOKEN`.
    """
    app = FastAPI(title="dicom-node", version=__version__, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def ask_for_token(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and request.url.path != "/health":
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), token.encode()):
                return JSONResponse({"detail": "This node asks for its token (web.token_file)."}, 401)
        return await answer(request)

    @app.get("/health")
    def get_health(response: Response) -> dict[str, Any]:
        document = health()
        response.status_code = 503 if document["status"] == "failing" else 200
        return document

    @app.get("/api/jobs")
    def get_jobs(
        state: Annotated[list[JobState] | None, Query()] = None,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    ) -> dict[str, Any]:
        return jobs_document(ledger, state or (), after=after, limit=limit)

    @app.get("/api/jobs/{job_id}")
    def get_job(job_id: int) -> dict[str, Any]:
        try:
            return job_document(ledger, job_id)
        except UnknownJob as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/api/jobs/{job_id}/qc.png")
    def get_qc(job_id: int) -> FileResponse:
        try:
            job = ledger.job(job_id)
        except UnknownJob as error:
            raise HTTPException(404, str(error)) from error
        picture = spool.result_dir(job.result) / "qc.png" if job.result else None
        if picture is None or not picture.is_file():
            raise HTTPException(404, f"Job {job_id} has no picture: it has not been corrected.")
        return FileResponse(picture, media_type="image/png")

    @app.get("/api/series")
    def get_series(after: str = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE) -> dict[str, Any]:
        rows = ledger.all_series(after=after, limit=limit)
        return {
            "series": series_document(rows),
            "next": rows[-1].series_uid if len(rows) == limit else None,
        }

    return app
