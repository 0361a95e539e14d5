"""More load than usual: what the server itself costs, overload, and probes beside it."""

import http.client
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time

from .harness import Run, Server, address, idle, median, number, percentile, processor_seconds

STEP_MS = 5.0
ROWS = 16
# Texts (a row each) that wait for one of the 16 rows: what is admitted waits for a quarter of a turn.
WAITING = 4
SLO_MS = 150
OVERLOAD_ARGS = ["--max-rows", str(ROWS), "--max-waiting-rows", str(WAITING)]


def prompts(folder: str, messages: bool, seed: int) -> str:
    """A file of short, different prompts."""
    rng = random.Random(seed)
    path = os.path.join(folder, "messages.jsonl" if messages else "prompts.jsonl")
    with open(path, "w") as file:
        for _ in range(4096):
            text = " ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(8))
            line = {"messages": [{"role": "user", "content": text}]} if messages else {"prompt": text}
            file.write(json.dumps(line) + "\n")
    return path


# ---- what the server itself costs


class Echo:
    """The bare axum server."""

    def __init__(self, run: Run):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [run.echo_bin, str(port)]
        run.command(argv)
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("the echo server does not listen")

    def __enter__(self) -> "Echo":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()


def overhead(run: Run) -> None:
    """The server's own cost per request, with an engine that answers at once, beside a bare echo server."""
    if not os.path.exists(run.echo_bin):
        return run.note("skipped", f"{run.echo_bin} is absent: cargo build --release --example echo")
    if run.device != "hash":
        return run.note("skipped", "needs --device hash")
    with tempfile.TemporaryDirectory() as folder, Echo(run) as echo, run.serve(*run.device_args(0)) as server:
        text = ["--prompts", prompts(folder, False, run.seed), "--endpoint", "completions", "--mix", "text", "--max-tokens", "1"]
        lists = ["--prompts", prompts(folder, True, run.seed), "--endpoint", "items", "--mix", "search", "--n", "1", "--beam-width", "1"]
        for name, body in (("text of 1 token", [*text, "--model", "demo"]), ("list of 1 item", lists)):
            alternate(run, name, [*body, "--stream", "none"], echo, server)


def alternate(run: Run, what: str, body: list[str], echo: Echo, server: Server) -> None:
    """Closed loops by turns, then open ones at 0.7 of what was reached."""
    rounds, seconds = run.pick((1, "2s"), (5, "5s"))
    both = {"echo": echo, "ours": server}
    rates, costs = {name: [] for name in both}, {name: [] for name in both}
    for _ in range(rounds):
        for name, one in both.items():
            before = processor_seconds(one.process)
            report = run.bench(one.url, *body, "--duration", seconds, "--concurrency", "32")
            expect_done(report)
            rates[name].append(report["done_per_s"])
            costs[name].append((processor_seconds(one.process) - before) / report["done"] * 1e6)
    ours, bare = median(rates["ours"]), median(rates["echo"])
    bound = min(20_000.0, bare / 2)
    run.figure(f"{what}: requests/s, closed loop of 32", f">= {bound:,.0f}", f"{ours:,.0f}, echo {bare:,.0f} (x {ours / bare:.2f})", ours >= bound)
    run.note(f"{what}: processor time per request, engine included", f"{median(costs['ours']):.1f} µs, echo {median(costs['echo']):.1f} µs")
    rate = f"{0.7 * ours:.0f}"
    p50, p99 = {name: [] for name in both}, {name: [] for name in both}
    for _ in range(rounds):
        for name, one in both.items():
            report = run.bench(one.url, *body, "--duration", seconds, "--rate", rate, "--concurrency", "1024")
            expect_done(report)
            p50[name].append(report["latency_ms"]["e2e"]["p50"])
            p99[name].append(report["latency_ms"]["e2e"]["p99"])
    added = [median(of["ours"]) - median(of["echo"]) for of in (p50, p99)]
    seen = f"{added[1]:.2f} ms (p99 {median(p99['ours']):.2f}, echo {median(p99['echo']):.2f}); p50 + {added[0]:.2f} ms"
    run.figure(f"{what}: added p99 at {rate}/s", "<= 1 ms", seen, added[1] <= 1)


def expect_done(report: dict) -> None:
    if report["errors"] or report["refused"] or not report["done"]:
        raise RuntimeError(f"{report['errors']} errors, {report['refused']} refusals: {report['error_messages']}")


# ---- overload


def text_load(folder: str, seed: int) -> list[str]:
    """Texts of 8 tokens behind prompts of about 11: 19 rows each."""
    return ["--prompts", prompts(folder, False, seed), "--endpoint", "completions", "--mix", "text", "--max-tokens", "8", "--stream", "none", "--extra", '{"ignore_eos": true}', "--slo", f"e2e={SLO_MS}"]


def saturate(run: Run, server: Server, load: list[str], seconds: str) -> tuple[float, float]:
    """Best goodput and best rate of closed loops."""
    reports = [run.bench(server.url, *load, "--concurrency", str(count), "--duration", seconds) for count in (ROWS, ROWS + WAITING)]
    return max(report["goodput"]["per_s"] for report in reports), max(report["done_per_s"] for report in reports)


def overload(run: Run) -> None:
    """Offered more than it can do, the server does as much as before and refuses the rest at once."""
    rounds, seconds = run.pick((1, "3s"), (3, "10s"))
    run.say(f"objective: {SLO_MS} ms end to end; steps of {STEP_MS:g} ms with at most {ROWS} rows, {WAITING} rows may wait")
    turns = []
    with tempfile.TemporaryDirectory() as folder, run.serve(*OVERLOAD_ARGS, *run.device_args(STEP_MS)) as server:
        load = text_load(folder, run.seed)
        for _ in range(rounds):
            peak, rate = saturate(run, server, load, seconds)
            reports = {factor: run.bench(server.url, *load, "--rate", f"{factor * rate:.0f}", "--duration", seconds) for factor in (0.8, 2, 10)}
            turns.append((peak, rate, reports))
        run.say(f"load average {os.getloadavg()[0]:.2f}")
        bounds(run, turns)
        metrics = server.wait_for(idle, 2)[2]
        run.figure("engine idle afterwards", "yes", "yes" if idle(metrics) else "no", idle(metrics))


def bounds(run: Run, turns: list) -> None:
    """Figures of overload: medians over the turns."""
    run.note("peak goodput and saturating rate, closed loop", f"{median([peak for peak, _, _ in turns]):.0f}/s, {median([rate for _, rate, _ in turns]):.0f}/s")

    def middle(of) -> float:
        return median([of(*turn) for turn in turns])

    calm = middle(lambda peak, rate, reports: reports[0.8]["latency_ms"]["e2e"]["p99"])
    run.note("0.8x: p99 of the answered", f"{calm:.0f} ms")
    for factor, share in ((2, 0.9), (10, 0.85)):
        run.least(f"{factor}x: goodput over peak", middle(lambda peak, rate, reports: reports[factor]["goodput"]["per_s"] / peak), share)
        ratio = middle(lambda peak, rate, reports: reports[factor]["latency_ms"]["e2e"]["p99"] / reports[0.8]["latency_ms"]["e2e"]["p99"])
        run.most(f"{factor}x: p99 of the admitted over that at 0.8x", ratio, 1.5)
        refusal = middle(lambda peak, rate, reports: reports[factor]["latency_ms"].get("refused", {}).get("p99", float("nan")))
        lag = middle(lambda peak, rate, reports: reports[factor]["latency_ms"]["lag"]["p99"])
        run.figure(f"{factor}x: p99 of refusals", "<= 5 ms", f"{refusal:.2f} ms (the load generator's own lag: {lag:.2f} ms)", refusal <= 5)
    all_reports = [report for _, _, reports in turns for report in reports.values()]
    refused = sum(report["refused"] for report in all_reports)
    run.none("refusals without Retry-After", sum(report["refused_without_retry_after"] for report in all_reports), refused)
    other = sum(count for report in all_reports for status, count in report["statuses"].items() if status not in ("200", "429"))
    run.none("answers other than 200 and 429, and failures", other + sum(report["errors"] for report in all_reports))
    run.none("requests due and never sent", sum(report["unsent"] for report in all_reports))


# ---- probes


class Prober(threading.Thread):
    """Asks at a steady rate, on a new connection each time, and notes times and statuses."""

    def __init__(self, url: str, paths: list[str], rate: float):
        super().__init__(daemon=True)
        self.where, self.paths, self.gap = address(url), paths, 1 / rate
        self.took: dict[str, list[float]] = {path: [] for path in paths}
        self.bad: list[str] = []
        self.ending = threading.Event()

    def run(self) -> None:
        due, at = time.monotonic(), 0
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            path = self.paths[at % len(self.paths)]
            begin = time.monotonic()
            try:
                status = self.ask(path)
                if status != 200:
                    self.bad.append(f"{path}: {status}")
            except OSError as error:
                self.bad.append(f"{path}: {error}")
            self.took[path].append((time.monotonic() - begin) * 1e3)
            due, at = due + self.gap, at + 1

    def ask(self, path: str) -> int:
        connection = http.client.HTTPConnection(*self.where, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def stop(self) -> None:
        self.ending.set()
        self.join()


def health(run: Run) -> None:
    """Probes are answered at once under overload, and never wait in the engine's queue."""
    seconds = run.pick("4s", "30s")
    with tempfile.TemporaryDirectory() as folder, run.serve(*OVERLOAD_ARGS, *run.device_args(STEP_MS), admin=True) as server:
        load = text_load(folder, run.seed)
        _, rate = saturate(run, server, load, "2s")
        probers = [Prober(server.url, ["/livez", "/readyz"], 50), Prober(server.admin, ["/readyz", "/metrics"], 10)]
        run.say("probes: 50/s of /livez and /readyz, 10/s of /readyz and /metrics at the admin listener, a connection for each")
        for prober in probers:
            prober.start()
        report = run.bench(server.url, *load, "--rate", f"{10 * rate:.0f}", "--duration", seconds)
        for prober in probers:
            prober.stop()
        run.note("load beside the probes", f"{report['sent_per_s']:.0f}/s sent, {report['done_per_s']:.0f}/s answered")
        for prober, name in zip(probers, ("", "admin ")):
            for path, took in prober.took.items():
                run.most(f"{name}{path}: p99 of {number(len(took))}", percentile(took, 0.99), 50, " ms")
        run.none("probes not answered with 200", sum(len(prober.bad) for prober in probers), sum(len(took) for prober in probers for took in prober.took.values()))
        server.wait_for(idle, 5)
        before = server.metrics()
        for _ in range(200):
            server.get("/livez"), server.get("/readyz")
        after = server.metrics()
        names = ("engine_steps_total", "request_queue_time_seconds_count")
        run.none("steps and requests of the engine for 400 probes", int(sum(after[name] - before[name] for name in names)))
