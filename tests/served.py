"""A running `sidereal serve` for tests: started on ports of its own, asked over HTTP, ended by SIGTERM, its log kept.

SIDEREAL_BIN names the binary (target/release/sidereal), SIDEREAL_TEST_MODEL a model folder with a catalog.jsonl in it (without one the
built-in demonstration is served).
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("SIDEREAL_BIN") or ROOT / "target" / "release" / "sidereal").absolute()
MODEL = os.environ.get("SIDEREAL_TEST_MODEL")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server process."""

    def __init__(self, *options: str, port: int | None = None, key: str | None = None):
        self.port, self.admin_port, self.key = port or free_port(), free_port(), key
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        # For the log, and for what programs leave behind that are run beside the server.
        self._folder = tempfile.TemporaryDirectory(prefix="sidereal-")
        self.folder = pathlib.Path(self._folder.name)
        self._log = (self.folder / "log").open("wb")
        command = [str(BINARY), "serve", "--port", str(self.port), "--admin-port", str(self.admin_port), *options]
        if MODEL:
            command += ["--model", MODEL, "--catalog", str(pathlib.Path(MODEL) / "catalog.jsonl")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_until_ready(self) -> None:
        # The port takes connections before the model is there; an answer comes when it is.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/readyz", timeout=2).status == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready after 60 s:\n{self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def ask(self, path: str, body=None, *, method: str | None = None, admin: bool = False, headers: dict | None = None):
        """Status and JSON (or text) of an answer."""
        data = None if body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {}) | (headers or {})
        base = self.admin if admin else self.url
        request = urllib.request.Request(base + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def get(self, path: str):
        """The JSON of an answer that must be a good one."""
        status, answer = self.ask(path)
        assert status == 200, (path, status, answer)
        return answer

    def post(self, path: str, body, **options):
        """The JSON of an answer that must be a good one."""
        status, answer = self.ask(path, body, **options)
        assert status == 200, (path, status, answer)
        return answer

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if it is not there yet."""
        lines = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", self.get("/metrics"), re.M)
        return sum(map(float, lines))

    def until(self, what: str, condition, seconds: float = 10) -> None:
        """Waits for a condition, within a bound."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not so after {seconds} s: {what}\n{self.log()[-2000:]}"
            time.sleep(0.01)

    def idle(self) -> bool:
        return self.metric("sidereal:num_requests_running") + self.metric("sidereal:num_requests_waiting") == 0

    def stop(self) -> None:
        """Ends the server; it must be idle, drain, and have had no bug."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not drain:\n{self.log()[-2000:]}") from None
        log = self.log()
        assert status == 0, f"exit code {status}:\n{log[-4000:]}"
        for word in ("panicked", "gate_violation", "ERROR"):
            assert word not in log, f"{word} in the log:\n{log[-4000:]}"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.process.kill()
            self.process.wait()
