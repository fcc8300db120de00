"""Servers that keep a user waiting, or answer with something else, end in one line, soon."""

import contextlib
import hashlib
import itertools
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, set_client_factory
from huggingface_hub.utils import _http
from huggingface_hub.utils._runtime import is_package_available, is_xet_available

from fg_ssl_zoo.backbones.weights.config import check_source
from fg_ssl_zoo.config import HubUnresponsive, bound_hub_client, hub_client
from tests.hub_server import Hub, point_client_at


class Wrong(BaseHTTPRequestHandler):
    """Answers as the path or the repository says."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = next(
            kind
            for kind in ("silent", "busy", "limit", "later", "circle", "login", "slow", "drip")
            if kind in self.path
        )
        getattr(self, kind)()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def silent(self):
        self.server.over.wait(60)

    def busy(self):
        self.answer(429, {"Retry-After": "300"})

    def limit(self):
        self.answer(429, {"RateLimit": '"api";r=0;t=299'})

    def later(self):
        self.answer(504, {"Retry-After": "3600"})

    def circle(self):
        self.answer(302, {"Location": self.path})

    def login(self):
        self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in")

    def slow(self):
        self.send_response(200)
        self.end_headers()
        self.without_end(b"1")

    def drip(self):
        self.without_end(b"HTTP/1.1 200 OK\r\nServer: slow" + b"-" * 9999)

    def without_end(self, content):
        with contextlib.suppress(OSError):
            for place in itertools.count():
                if self.server.over.wait(0.05):
                    return
                self.wfile.write(content[place % len(content) :][:1])
                self.wfile.flush()

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def log_message(self, *words):
        pass


@pytest.fixture
def limits(monkeypatch):
    """Short limits, and the client's own ones afterwards."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(hub_client, "SLOW", 0.5)
    set_client_factory(_http.default_client_factory)
    bound_hub_client()
    yield
    set_client_factory(_http.default_client_factory)


@pytest.fixture
def wrong(limits, tmp_path, monkeypatch):
    """A server that does each wrong thing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    server.daemon_threads, server.over = True, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    point_client_at(url, tmp_path, monkeypatch)
    yield url
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("kind", "message"), [
    ("busy", r"127\.0\.0\.1 asks to wait 300 s \(429\); try again then"),
    ("limit", r"127\.0\.0\.1 asks to wait 299 s \(429\); try again then"),
    ("later", r"127\.0\.0\.1 asks to wait 3600 s \(504\); try again then"),
    ("circle", r"127\.0\.0\.1 redirects in a circle; check HF_ENDPOINT"),
    ("login", r"127\.0\.0\.1 answers with a web page instead of a file: a login page"),
    ("slow", r"127\.0\.0\.1 sent \d+ bytes in \d+ s; try again later"),
    ("drip", r"127\.0\.0\.1 has not completed the headers of its answer in \d+ s; try again"),
])  # fmt: skip
def test_a_wrong_answer_is_one_line(wrong, kind, message):
    began = time.monotonic()
    with pytest.raises(HubUnresponsive, match=message) as refused:
        get_session().get(f"{wrong}/{kind}/model.safetensors", timeout=None)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_silent_server_ends_after_two_questions(wrong):
    began = time.monotonic()
    with pytest.raises(HubUnresponsive, match=r"127\.0\.0\.1 does not answer; try again later"):
        hf_hub_download("owner/silent", "config.json")
    with pytest.raises(Exception, match="timed out"):
        HfApi().model_info("owner/silent")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("kind", ["busy", "circle", "login"])
def test_a_download_of_a_wrong_answer_is_one_line(wrong, kind):
    with pytest.raises(HubUnresponsive):
        hf_hub_download(f"owner/{kind}", "config.json")


@pytest.mark.slow
@pytest.mark.parametrize("call", [
    lambda url: hf_hub_download("owner/drip", "config.json"),
    lambda url: HfApi().model_info("owner/drip"),
    lambda url: get_session().post(f"{url}/drip", content=b"1" * 1000),
    lambda url: check_source("hf-hub:owner/drip"),
])  # fmt: skip
def test_headers_without_end_are_one_line(wrong, call):
    began = time.monotonic()
    with pytest.raises(HubUnresponsive, match="has not completed the headers of its answer"):
        call(wrong)
    assert time.monotonic() - began < 30


def test_a_long_upload_is_not_taken_for_a_slow_answer(wrong):
    def pieces():
        for _ in range(8):
            time.sleep(0.2)
            yield b"1" * 100

    with pytest.raises(HubUnresponsive, match="asks to wait"):
        get_session().post(f"{wrong}/busy", content=pieces(), headers={"Content-Length": "800"})


@pytest.mark.parametrize(("value", "allowed"), [(None, False), ("1", False), ("0", True)])
def test_xet_is_used_by_those_alone_who_ask_for_it(limits, monkeypatch, value, allowed):
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", value == "1")
    if value is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_XET", value)
    bound_hub_client()
    assert allowed != constants.HF_HUB_DISABLE_XET
    assert is_xet_available() == (allowed and is_package_available("hf_xet"))


def test_bounding_twice_is_bounding_once(limits):
    first = type(get_session())
    bound_hub_client()
    assert type(get_session()) is first


def test_weights_of_a_repository_have_the_hash_that_the_hub_states(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "test_resnet"}')
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    with Hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        hub.publish("owner/name", folder)
        hub.corrupt.add("model.safetensors")
        wanted = hashlib.sha256(b"weights" * 100).hexdigest()[:12]
        with pytest.raises(ValueError, match=f"differs from the published file: .* {wanted}"):
            check_source("hf-hub:owner/name")
