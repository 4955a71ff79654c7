"""Check the requests that the explorer receives, and limit those that its own pages can send.

A page of another site can send requests to 127.0.0.1, and can make a name of its own resolve to
that address (DNS rebinding). Both are visible in the headers `Host` and `Origin`, and such requests
are refused. A content security policy prevents the explorer's pages, and the reports that they
show, from contacting other servers.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGE_POLICY: Final = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Policy of the page. It allows the inline scripts and styles of gradio, but no other server."""

REPORT_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
"""Policy of a report. It allows no server, because a report contains its scripts and pictures."""

DEFAULT_PORT: Final = 80
"""Port of addresses that name none."""


class Guard:
    """ASGI middleware that refuses other hosts and origins, and adds the policy to responses."""

    def __init__(self, app: App, *, port: int) -> None:
        self.app = app
        names = ("127.0.0.1", "localhost")
        self.hosts = {f"{name}:{port}".encode() for name in names}
        if port == DEFAULT_PORT:  # browsers leave it out
            self.hosts |= {name.encode() for name in names}
        self.origins = {b"http://" + host for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if not (len(hosts) == 1 and hosts[0] in self.hosts and {*origins} <= self.origins):
            await _refuse(scope, send)
            return

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", PAGE_POLICY.encode())
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        await self.app(scope, receive, with_policy)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = b"This page can only be opened in a browser on the same machine.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def framed(page: str) -> str:
    """Return the HTML of a report with its policy placed first, so that it applies to all of it."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{REPORT_POLICY}">'
    return f"<!doctype html>{meta}{page}"
