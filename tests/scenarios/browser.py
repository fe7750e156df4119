"""Chromium without a screen, driven through its DevTools pipe as a person would drive it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30.0  # s


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _above(file: int) -> int:
    """Return a copy of an open file with a number that is not 3 or 4."""
    return fcntl.fcntl(file, fcntl.F_DUPFD, 10)


class Browser:
    """One page of one browser; use it in a `with`."""

    def __init__(self, program: str, profile: str, width: int = 1200, height: int = 1400) -> None:
        # The browser reads commands from file 3 and answers on file 4.
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        arguments = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
        ]

        def arrange() -> None:
            copies = _above(commands), _above(answers)
            for place, copy in enumerate(copies, 3):
                os.dup2(copy, place)

        self._process = subprocess.Popen(
            arguments,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
            preexec_fn=arrange,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> Browser:
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            self.call("Page.enable")
            self.call("Runtime.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        os.close(self._commands)  # which ends the browser
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._answers)

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command; return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
            elif answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            received = os.read(self._answers, 1 << 16)
            assert received, "the browser is gone"
            self._received += received
        line, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, url: str) -> None:
        """Open a page, and wait until its script has run."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while self.ask("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"

    def ask(self, expression: str) -> Any:
        """Return what an expression is in the page, after its next frame."""
        frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        result = self.call(
            "Runtime.evaluate",
            expression=f"{frame}.then(() => {expression})",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        found: str = self.ask(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Return where a point of an element is, in parts of its width and height."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.ask(
            f"((b) => [b.x, b.y, b.width, b.height])({element}.getBoundingClientRect())"
        )
        return x + across * width, y + down * height

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)
