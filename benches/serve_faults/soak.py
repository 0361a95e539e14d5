"""A real model under a mixed load for a while."""

import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter

from .client import native
from .harness import Run, Server, idle

SAMPLE_SECONDS = 5.0
# The cache of keys and values takes its memory as it fills, and a slope says nothing before that is over: the soak's is small.
CACHE_MIB = 64
LEAST_SECONDS = 120.0
# Counters that stay at 0 if nothing was lost.
LOST = ("gate_violations_total", "audit_lost_total", "requests_failed_total", "requests_expired_total")


def snapshots(run: Run, folder: str) -> list[str]:
    """The catalog as a snapshot, and one without every tenth item."""
    with open(run.catalog) as file:
        lines = file.readlines()
    fewer = os.path.join(folder, "fewer.jsonl")
    with open(fewer, "w") as file:
        file.writelines(line for at, line in enumerate(lines) if at % 10 != 9)
    made = []
    for name, source in (("whole", run.catalog), ("fewer", fewer)):
        made.append(os.path.join(folder, f"{name}.sidcat"))
        argv = [run.bin, "catalog", "build", source, "--model", run.model, "--out", made[-1]]
        run.command(argv)
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return made


class Operator(threading.Thread):
    """Changes the catalog every few seconds, and holds lists asked for after a denial against it."""

    def __init__(self, server: Server, files: list[str], seed: int):
        super().__init__(daemon=True)
        self.server, self.files, self.rng = server, files, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self.named_denied = self.looked = 0
        self.ending = threading.Event()

    def run(self) -> None:
        steps = [self.load, self.deny, self.rollback, self.change, self.load, self.allow]
        at = 0
        while not self.ending.wait(self.rng.uniform(1, 4)):
            try:
                steps[at % len(steps)]()
            except (OSError, RuntimeError) as error:
                self.failed.append(str(error))
            at += 1

    def ask(self) -> list[str]:
        status, answer = self.server.post(*native("items", n=10))
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {answer}")
        return [item["id"] for item in answer["items"]]

    def post(self, what: str, body) -> None:
        self.server.must_post(f"/admin/catalog/{what}", body)
        self.done[what] += 1

    def load(self) -> None:
        self.post("load", {"file": self.files[self.done["load"] % 2], "carry": False})

    def rollback(self) -> None:
        self.post("rollback", None)

    def deny(self) -> None:
        ids = self.ask()[:3]
        self.post("deny", {"ids": ids})
        self.looked += 1
        self.named_denied += len(set(ids) & set(self.ask()))

    def allow(self) -> None:
        self.post("allow", {"ids": self.server.get("/admin/catalog", admin=True)[1]["denied_ids"]})

    def change(self) -> None:
        """An item of the present list goes and comes back as it was."""
        name = self.ask()[0]
        status, item = self.server.get(f"/v1/catalog/item?id={name}")
        if status != 200:
            raise RuntimeError(f"{name}: HTTP {status}")
        again = {key: item[key] for key in ("id", "type", "title", "popularity", "sid")} | item["attributes"]
        self.post("remove", {"ids": [name]})
        self.post("add", {"items": [{key: value for key, value in again.items() if value is not None}]})

    def stop(self) -> None:
        self.ending.set()
        self.join()


def slope(samples: list[tuple[float, float]]) -> float:
    """By least squares, per minute."""
    count = len(samples)
    if count < 2:
        return float("nan")
    x0, y0 = sum(x for x, _ in samples) / count, sum(y for _, y in samples) / count
    return 60 * sum((x - x0) * (y - y0) for x, y in samples) / sum((x - x0) ** 2 for x, _ in samples)


def soak(run: Run) -> None:
    """A model under a mixed load with cancellations, swaps and denials: memory flat, nothing lost."""
    seconds = run.soak_seconds
    with tempfile.TemporaryDirectory() as folder:
        files = snapshots(run, folder)
        audit = os.path.join(folder, "audit.jsonl")
        with run.serve("--model", run.model, "--catalog", files[0], "--audit-log", audit, "--audit-mib", "64", "--cache-mib", str(CACHE_MIB), admin=True) as server:
            run.note("start to ready", f"{server.fields['start_ms']:.0f} ms")
            load = ["--duration", f"{seconds:g}s", "--concurrency", "8", "--cancel", "0.1", "--extra", '{"unknown_items": "skip"}']
            load += [word for file in files for word in ("--verify", file)]
            bench = run.bench(server.url, *load, wait=False)
            operator = Operator(server, files, run.seed)
            operator.start()
            samples = watch(run, server, bench)
            operator.stop()
            report = bench.report()
            judge(run, server, report, operator, samples)
            code = server.stop()
            run.figure("exit code after SIGTERM", "0", str(code), code == 0)
            complain(run, server)
            with open(audit) as file:
                run.note("lines of the audit log", f"{sum(1 for line in file if json.loads(line)):,}")


def watch(run: Run, server: Server, bench) -> list[tuple[float, float]]:
    """Resident memory every few seconds while the load runs."""
    begin, samples = time.monotonic(), []
    gap = min(SAMPLE_SECONDS, run.soak_seconds / 20)
    while bench.running() and server.alive():
        passed = time.monotonic() - begin
        samples.append((passed, float(server.memory_kib())))
        if len(samples) % 12 == 1:
            cache = server.metrics()["kv_cache_shared_perc"]
            run.say(f"{passed:.0f} s: {samples[-1][1] / 1024:.1f} MiB, cache filled to {cache:.0%}, load average {os.getloadavg()[0]:.2f}")
        time.sleep(gap)
    return samples[:-1]


def judge(run: Run, server: Server, report: dict, operator: Operator, samples: list[tuple[float, float]]) -> None:
    done, took, metrics = server.wait_for(idle, 2)
    for message in report["error_messages"] + report["invalid_messages"] + operator.failed[:3]:
        run.say(f"seen: {message}")
    latency = report["latency_ms"]["e2e"]
    run.note("load", f"{report['done']:,} answered ({report['done_per_s']:.0f}/s), {report['cancelled']:,} dropped by the client, p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms")
    run.note("changes of the catalog", ", ".join(f"{count} {name}" for name, count in operator.done.items()))
    run.none("invalid items", report["invalid_items"], report["items"])
    run.none("requests failed or refused", report["errors"] + report["refused"], report["sent"])
    run.none("lists cut short without saying so", report["short_lists"], report["done"])
    run.none("changes of the catalog that failed", len(operator.failed), sum(operator.done.values()))
    run.none("denied items named afterwards", operator.named_denied, operator.looked)
    for name in LOST:
        run.none(name, int(metrics[name]))
    errors = sum(value for name, value in metrics.items() if name.startswith("http_requests_total") and 'status="5' in name)
    run.none("answers of status 5xx", int(errors))
    run.figure("engine idle afterwards", "<= 2 s", f"{took:.2f} s" if done else str(metrics), done)
    half = [sample for sample in samples if sample[0] >= samples[-1][0] / 2] if samples else []
    rise = slope(half)
    mean = sum(kib for _, kib in half) / max(1, len(half))
    # What a minute adds to memory, at most a thousandth of it.
    seen = f"{rise:+.1f} KiB/min of {mean / 1024:.1f} MiB, {len(half)} samples"
    if run.soak_seconds < LEAST_SECONDS:
        run.note("memory, second half, least squares", f"{seen}: not judged in less than {LEAST_SECONDS:g} s")
    else:
        run.figure("memory, second half, least squares", "<= 0.1 %/min", seen, rise <= mean / 1000)
    run.note("memory at first, at last, at most", f"{samples[0][1] / 1024:.1f}, {samples[-1][1] / 1024:.1f}, {server.memory_kib('VmHWM') / 1024:.1f} MiB" if samples else "-")


def complain(run: Run, server: Server) -> None:
    complaints = Counter((line["level"], str(line.get("message")), str(line.get("error", ""))) for line in server.complaints())
    for (level, message, error), count in complaints.most_common():
        run.say(f"log, {count} times: {level} {message} {error}")
    run.none("log lines at warning or above", sum(complaints.values()))
