"""Starts and stops servers, runs the load generator, keeps the figures."""

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

START_SECONDS = 60.0
STOP_SECONDS = 60.0


@dataclass
class Figure:
    """One row of the table. `ok` is None where there is no bound, or nothing could be measured."""

    part: str
    name: str
    bound: str
    seen: str
    ok: bool | None


@dataclass
class Run:
    """What all parts share."""

    bin: str
    echo_bin: str
    device: str
    quick: bool
    seed: int
    model: str | None = None
    catalog: str | None = None
    soak_seconds: float = 600.0
    figures: list[Figure] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    part: str = ""

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def command(self, argv: list[str]) -> None:
        """Notes and prints a command line that is run."""
        line = shlex.join(argv)
        self.commands.append(line)
        print(f"  $ {line}", flush=True)

    def figure(self, name: str, bound: str, seen: str, ok: bool | None) -> None:
        """Notes and prints a figure."""
        self.figures.append(Figure(self.part, name, bound, seen, ok))
        print(f"  {VERDICTS[ok]:<6} {name}: {seen}" + (f"  (bound: {bound})" if bound else ""), flush=True)

    def most(self, name: str, seen: float, bound: float, unit: str = "") -> None:
        """A figure that must not exceed a bound."""
        self.figure(name, f"<= {number(bound)}{unit}", f"{number(seen)}{unit}", seen <= bound)

    def least(self, name: str, seen: float, bound: float, unit: str = "") -> None:
        """A figure that must reach a bound."""
        self.figure(name, f">= {number(bound)}{unit}", f"{number(seen)}{unit}", seen >= bound)

    def none(self, name: str, seen: int, of: int | None = None) -> None:
        """A count that must be 0; with `of`, of at least one."""
        self.figure(name, "0", number(seen) + (f" of {number(of)}" if of is not None else ""), seen == 0 and of != 0)

    def note(self, name: str, seen: str) -> None:
        """A figure without a bound."""
        self.figure(name, "", seen, None)

    def pick(self, quick, full):
        """One of two sizes."""
        return quick if self.quick else full

    def device_args(self, step_ms: float) -> list[str]:
        """The device that stands for a model: a step takes at least `step_ms`."""
        if self.device == "hash":
            return ["--device", "hash", "--step-ms", f"{step_ms:g}"]
        return []

    def serve(self, *args: str, admin: bool = False) -> "Server":
        """A started server, ready."""
        return Server(self, list(args), admin)

    def bench(self, url: str, *args: str, wait: bool = True):
        """Runs `sidereal bench serve --json`; the report, or with `wait=False` a `Bench` that yields it."""
        bench = Bench(self, url, list(args))
        return bench.report() if wait else bench


VERDICTS = {True: "ok", False: "FAILED", None: "-"}


def number(value: float) -> str:
    """A number for people."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


class Server:
    """A `sidereal serve` on free ports."""

    def __init__(self, run: Run, args: list[str], admin: bool):
        argv = [run.bin, "serve", "--port", "0", "--log-format", "json"]
        argv += ["--admin-port", "0"] if admin else []
        argv += args
        run.command(argv)
        self.lines: list[dict] = []
        self._ready = threading.Event()
        self.fields: dict = {}
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS) or not self.fields:
            self.process.kill()
            self.process.wait()
            said = "; ".join(str(line.get("message")) for line in self.lines[-3:])
            raise RuntimeError(f"the server did not start: {said}")
        self.url, self.admin = self.fields["url"], self.fields.get("admin")

    def _read(self) -> None:
        for raw in self.process.stderr:
            text = raw.decode(errors="replace").rstrip()
            try:
                line = json.loads(text)
            except ValueError:
                line = {"level": "TEXT", "message": text}
            self.lines.append(line)
            if line.get("message") == "ready":
                self.fields = line
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        return address(self.url)

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and the exit code; a server that does not end is killed (exit code -9)."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5)
        return code

    def get(self, path: str, admin: bool = False):
        """Status and body (JSON if it is) of a GET."""
        return call(self.admin if admin else self.url, "GET", path)

    def post(self, path: str, body, admin: bool = False):
        """Status and body (JSON if it is) of a POST."""
        return call(self.admin if admin else self.url, "POST", path, body)

    def must_post(self, path: str, body):
        """A POST to the admin listener that must be answered with 200."""
        status, answer = self.post(path, body, admin=True)
        if status != 200:
            raise RuntimeError(f"{path}: HTTP {status}: {answer}")
        return answer

    def metrics(self) -> dict[str, float]:
        """All samples without labels, by their names without the prefix; those with labels by name and labels."""
        _, text = self.get("/metrics")
        found = {}
        for line in text.splitlines():
            match = re.fullmatch(r"sidereal:(\S+?(?:\{.*\})?) (\S+)", line)
            if match:
                found[match[1]] = float(match[2])
        return found

    def wait_for(self, test, seconds: float) -> tuple[bool, float, dict[str, float]]:
        """Waits until `test(metrics)` holds; whether it did, after how long, and the metrics then."""
        begin = time.monotonic()
        while True:
            metrics = self.metrics()
            passed = time.monotonic() - begin
            if test(metrics) or passed > seconds:
                return bool(test(metrics)), passed, metrics
            time.sleep(0.02)

    def memory_kib(self, field_name: str = "VmRSS") -> int:
        """Resident memory; `VmHWM` is its peak."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith(field_name + ":"):
                    return int(line.split()[1])
        raise RuntimeError(f"no {field_name} in /proc")

    def complaints(self) -> list[dict]:
        """Log lines at warning or above."""
        return [line for line in self.lines if line.get("level") in ("WARN", "ERROR")]


class Bench:
    """A running load generator."""

    def __init__(self, run: Run, url: str, args: list[str]):
        argv = [run.bin, "bench", "serve", "--url", url, "--json", "--seed", str(run.seed), *args]
        run.command(argv)
        self.out = tempfile.TemporaryFile()
        self.err = tempfile.TemporaryFile()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err)

    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """No more requests are sent."""
        if self.running():
            self.process.send_signal(signal.SIGINT)

    def report(self) -> dict:
        """Waits for the end; the JSON report."""
        code = self.process.wait()
        self.out.seek(0)
        text = self.out.read()
        if not text.strip():
            self.err.seek(0)
            said = self.err.read().decode(errors="replace").strip()
            raise RuntimeError(f"bench serve ended with {code}: {said}")
        return json.loads(text)


def processor_seconds(process: subprocess.Popen) -> float:
    """Processor time that a process has taken."""
    with open(f"/proc/{process.pid}/stat") as stat:
        words = stat.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port


def call(url: str, method: str, path: str, body=None, headers=None, timeout: float = 30.0):
    """Status and body (JSON if it is) of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address(url), timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        head = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, data, head | (headers or {}))
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text.decode(errors="replace")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share does not exceed; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1e6) * len(ordered) // 1_000_000) - 1)]


def median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def idle(metrics: dict[str, float]) -> bool:
    """Nothing runs, nothing waits, and no block is in use."""
    return not any(metrics[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))


def load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())
