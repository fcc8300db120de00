"""Limits of the Hub's client, which alone waits for ever on a server that accepts and is silent.

| limit | seconds | what it bounds |
| --- | --- | --- |
| HF_HUB_ETAG_TIMEOUT | 10 | to connect |
| HF_HUB_DOWNLOAD_TIMEOUT | 10 | between two pieces of an answer; 12 times as long for an upload |
| `SLOW` | 60 | after which an answer has to come at `SLOWEST` bytes a second or more |
| `LONGEST_WAIT` | 30 | that a server may ask to wait (429, Retry-After) |

Two time-outs of one server in a row end it: the client alone would repeat a question six times.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

SLOW = 60.0
SLOWEST = 1024.0
LONGEST_WAIT = 30.0
MOST_REDIRECTS = 8
UPLOADS = 12
"""An upload may take so many times longer to be answered: the server makes a commit of it."""

REPEATED = 2
"""Time-outs in a row after which a server is not asked again."""


class HubUnresponsive(OSError):
    """A server that keeps a user waiting, or sends something else; the message is one line."""


def bound_hub_client() -> None:
    """Bound every request that the Hub's client makes in this process from now on."""
    from huggingface_hub import constants, get_session, set_client_factory

    plain: Any = get_session()
    http: Any = sys.modules[type(plain).__module__.partition(".")[0]]  # httpx, or its successor
    if hasattr(plain, "silent"):
        return
    connect, idle = constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT

    circle = "{} redirects in a circle; check HF_ENDPOINT and the network"

    class Bounded(type(plain)):
        def __init__(self) -> None:
            super().__init__(
                event_hooks={
                    "request": [*plain.event_hooks["request"], bound],
                    "response": [*plain.event_hooks["response"], watch],
                },
                follow_redirects=True,
                max_redirects=MOST_REDIRECTS,
                timeout=None,  # `bound` sets it
            )
            self.silent: Counter[str] = Counter()
            self.redirects: Counter[str] = Counter()

        def send(self, request: Any, **options: Any) -> Any:
            host = request.url.host
            if self.silent[host] >= REPEATED:
                self.silent[host] = 0
                raise HubUnresponsive(f"{host} does not answer; try again later")
            try:
                response = super().send(request, **options)
            except http.TimeoutException:
                self.silent[host] += 1
                raise
            except http.TooManyRedirects:
                raise HubUnresponsive(circle.format(host)) from None
            self.silent[host] = 0
            self.redirects[host] = self.redirects[host] + 1 if response.is_redirect else 0
            if self.redirects[host] > MOST_REDIRECTS:  # the Hub's client follows some itself
                response.close()
                raise HubUnresponsive(circle.format(host))
            return response

    class Watched(http.SyncByteStream):
        def __init__(self, stream: Any, host: str) -> None:
            self.stream, self.host = stream, host

        def __iter__(self) -> Iterator[bytes]:
            began, received = time.monotonic(), 0
            for piece in self.stream:
                received += len(piece)
                seconds = time.monotonic() - began
                if seconds > SLOW and received < SLOWEST * seconds:
                    raise HubUnresponsive(
                        f"{self.host} sent {received} bytes in {seconds:.0f} s; try again later"
                    )
                yield piece

        def close(self) -> None:
            self.stream.close()

    def bound(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        answer = idle if request.method in ("GET", "HEAD") else UPLOADS * idle
        limits = {"connect": connect, "read": answer, "write": answer, "pool": answer}
        request.extensions["timeout"] = {
            kind: min(given.get(kind) or limit, limit) for kind, limit in limits.items()
        }

    def watch(response: Any) -> None:
        host = response.request.url.host
        wait = response.headers.get("retry-after", "")
        if wait.isdigit() and int(wait) > LONGEST_WAIT and response.status_code in (429, 503):
            raise HubUnresponsive(
                f"{host} asks to wait {wait} s ({response.status_code}); try again then"
            )
        page = response.headers.get("content-type", "").startswith("text/html")
        if page and response.status_code == 200 and not response.request.url.path.endswith("html"):
            raise HubUnresponsive(
                f"{host} answers with a web page where a file belongs: a login page of the "
                "network, or a wrong HF_ENDPOINT"
            )
        response.stream = Watched(response.stream, host)

    set_client_factory(Bounded)
