"""Time limits of the Hub client, which otherwise waits forever for a server that does not answer.

| limit | seconds | what it bounds |
| --- | --- | --- |
| HF_HUB_ETAG_TIMEOUT | 10 | to connect |
| HF_HUB_DOWNLOAD_TIMEOUT | 10 | between two pieces of an answer; 12 times as long for an upload |
| `SLOW` + that | 70 | until the headers of an answer are complete, once the request is sent |
| `SLOW` | 60 | after which an answer has to come at `SLOWEST` bytes a second or more |
| `LONGEST_WAIT` | 30 | that a server may ask to wait (Retry-After, RateLimit) |

After two consecutive time-outs of a server, it is not asked again; the client alone would retry six
times.

The Xet protocol has none of these limits, and its transfers are known to stall forever, so it is
disabled. HF_HUB_DISABLE_XET=0 in the environment enables it.
"""

import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

SLOW = 60.0
SLOWEST = 1024.0
LONGEST_WAIT = 30.0
MOST_REDIRECTS = 8
UPLOADS = 12
"""Factor of the time limit for uploads, since the server creates a commit before it answers."""

REPEATED = 2
"""Number of consecutive time-outs after which a server is not asked again."""


class HubUnresponsive(OSError):
    """A server that does not answer in time, or sends something unexpected; a one-line message."""


def bound_hub_client() -> None:
    """Set time limits for all further requests of the Hub client in this process."""
    from huggingface_hub import constants, get_session, set_client_factory

    if not os.environ.get("HF_HUB_DISABLE_XET"):
        constants.HF_HUB_DISABLE_XET = True
    plain: Any = get_session()
    http: Any = sys.modules[type(plain).__module__.partition(".")[0]]  # httpx, or its successor
    if hasattr(plain, "silent"):
        return
    connect, idle = constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT

    circle = "{} redirects in a circle; check HF_ENDPOINT and the network"

    def longest(request: Any) -> float:
        return idle if request.method in ("GET", "HEAD") else UPLOADS * idle

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

        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            host = request.url.host
            if self.silent[host] >= REPEATED:
                self.silent[host] = 0
                raise HubUnresponsive(f"{host} does not answer; try again later")
            send = super().send
            try:
                response = _in_time(
                    lambda: send(request, stream=True, **options), request, SLOW + longest(request)
                )
                if not stream:
                    _read(response)
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
        answer = longest(request)
        limits = {"connect": connect, "read": answer, "write": answer, "pool": answer}
        request.extensions["timeout"] = {
            kind: min(given.get(kind) or limit, limit) for kind, limit in limits.items()
        }

    def watch(response: Any) -> None:
        host = response.request.url.host
        wait = _asked_to_wait(response.headers)
        if wait > LONGEST_WAIT and response.is_error:
            raise HubUnresponsive(
                f"{host} asks to wait {wait} s ({response.status_code}); try again then"
            )
        page = response.headers.get("content-type", "").startswith("text/html")
        if page and response.status_code == 200 and not response.request.url.path.endswith("html"):
            raise HubUnresponsive(
                f"{host} answers with a web page instead of a file: a login page of the "
                "network, or a wrong HF_ENDPOINT"
            )
        response.stream = Watched(response.stream, host)

    set_client_factory(Bounded)


def _asked_to_wait(headers: Any) -> int:
    """Seconds that an answer asks for, in either of the headers that the Hub's client obeys."""
    after = headers.get("retry-after", "")
    used_up = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return max(int(after) if after.isdecimal() else 0, int(used_up[1]) if used_up else 0)


def _in_time(send: Callable[[], Any], request: Any, seconds: float) -> Any:
    """Call `send`, with a time limit until the headers of the answer are complete.

    The limit starts at the call and restarts at the end of each request's body, since redirects are
    followed inside. A socket time-out is not enough, since each received byte restarts it. A
    blocking read cannot be interrupted, so it runs in a thread, which is abandoned after the limit.

    Raises:
        HubUnresponsive: The limit is exceeded.
    """
    found: list[Any] = []
    over, late = threading.Event(), threading.Event()
    since, sending = time.monotonic(), False

    def trace(name: str, info: Any) -> None:
        nonlocal since, sending
        if ".send_request_body." in name:
            since, sending = time.monotonic(), name.endswith(".started")

    def work() -> None:
        try:
            found.append(send())
            if late.is_set():
                found[0].close()
        except BaseException as error:  # of the caller, which raises it
            found.append(error)
        finally:
            over.set()

    request.extensions["trace"] = trace
    threading.Thread(target=work, daemon=True).start()
    while not over.wait(max(0.01, min(seconds, since + seconds - time.monotonic()))):
        if not sending and time.monotonic() - since > seconds:
            late.set()
            raise HubUnresponsive(
                f"{request.url.host} has not completed the headers of its answer in "
                f"{seconds:.0f} s; try again later"
            )
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _read(response: Any) -> None:
    """Read the body of an answer, as the client does without streaming."""
    try:
        response.read()
    except BaseException:
        response.close()
        raise
