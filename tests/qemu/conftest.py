"""A package archive on the loopback interface, and a cache of its own for each test."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from iommu_emu.qemu import apt, cache

ARCHIVE = Path(__file__).parent / "archive"


class Archive(ThreadingHTTPServer):
    """Serves tests/qemu/archive.

    Attributes:
        requests: How often each path was asked for.
        replies: Status or body to answer a path's requests with, instead of the file's content.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.replies: dict[str, int | bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    """Static files, with planted answers."""

    server: Archive

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, directory=str(ARCHIVE))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        reply = self.server.replies.get(self.path)
        if reply is None:
            super().do_GET()
        elif isinstance(reply, int):
            self.send_error(reply)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Iterator[Archive]:
    """The mirror that packages come from."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    with Archive() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(apt.MIRROR_VARIABLE, server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, the tests' archive trusted, no proxy, no QEMU, no pauses."""
    for name in ("http_proxy", "https_proxy", "IOMMU_EMU_QEMU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(apt, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(apt, "KEYRINGS", (str(ARCHIVE / "key.gpg"),))
    monkeypatch.setattr(apt, "_host_settings", list)
    monkeypatch.setattr(cache.platform, "machine", lambda: "x86_64")
    return tmp_path / "xdg/iommu-emu"
