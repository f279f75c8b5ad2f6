"""Who may use the HTTP interface: host names, token, sessions, cross-site requests, and headers of answers.

On loopback without a token everybody on this machine may use it, but no foreign web page in a browser of
this machine: requests under another host name (DNS rebinding) and cross-site requests are refused. With a
token, a program presents it as `Authorization: Bearer`, and a person signs in once for a session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

COOKIE = "dicom_node_session"
SESSION_S = 12 * 3600.0
MAX_FORM_BYTES = 4096
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = frozenset({"/health", "/login", "/static/style.css"})  # without a token

HEADERS = {
    # no script at all, and nothing from elsewhere
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Decides about every request before anything else sees it; sessions are signed, and kept nowhere."""

    def __init__(self, token: str | None, *, clock: Callable[[], float] = time.time) -> None:
        self._token = token
        self._secret = secrets.token_bytes(32)  # a restart ends every session
        self._clock = clock

    # ---------------------------------------------------------------- each request

    async def __call__(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """The middleware: refuse, or answer; and the headers that every answer carries."""
        response = self._refusal(request) or await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.url.scheme == "https":
            response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        return response

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None and request.url.hostname not in LOOPBACK_NAMES:
            return _refused(421, "This node is asked by 127.0.0.1 or localhost, or with a token.")
        if request.method not in ("GET", "HEAD", "OPTIONS") and not _from_here(request):
            return _refused(403, "This request comes from another web site.")
        if self._token is None or request.url.path in OPEN_PATHS or self._knows(request):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
        return _refused(401, "This node asks for its token (web.token_file).")

    def _knows(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return (scheme == "Bearer" and self.is_token(given)) or self._session(request) is not None

    def is_token(self, given: str) -> bool:
        """Whether `given` is the token; takes equally long for every wrong one."""
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    # ---------------------------------------------------------------- sessions and forms

    def open_session(self, request: Request, response: Response) -> None:
        """Give the browser that has presented the token a session."""
        session = f"{self._clock() + SESSION_S:.0f}.{secrets.token_urlsafe(16)}"
        response.set_cookie(
            COOKIE,
            f"{session}.{self._sign('session', session)}",
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )

    def _session(self, request: Request) -> str | None:
        """The session of a request, when it is one of ours and not over."""
        session, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", session).encode()):
            return None
        ends, _, _ = session.partition(".")
        return session if float(ends) > self._clock() else None

    def form_token(self, request: Request) -> str:
        """What a form of ours carries, so that a form of somebody else does nothing."""
        return self._sign("form", self._session(request) or "loopback")

    async def form(self, request: Request) -> dict[str, str] | None:
        """The fields of a form that this node has handed out; None for any other."""
        fields = await read_form(request)
        given = fields.get("form_token", "")
        return fields if hmac.compare_digest(given.encode(), self.form_token(request).encode()) else None

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose} {text}".encode(), hashlib.sha256).hexdigest()


async def read_form(request: Request) -> dict[str, str]:
    """The fields of an urlencoded form; what is too long for one of ours is empty."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def local_path(text: str) -> str:
    """`text` when it is a path of this node, else the first page: no redirect leads elsewhere."""
    parts = urlsplit(text)
    ours = text.startswith("/") and not text.startswith(("//", "/\\")) and not (parts.scheme or parts.netloc)
    return text if ours and text.isprintable() else "/"


def _from_here(request: Request) -> bool:
    """Whether a request that changes something was not sent by a page of another site.

    Browsers always say where a POST comes from; programs, which know no cookies, say nothing.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or origin == f"{request.url.scheme}://{request.url.netloc}"


def _refused(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)
