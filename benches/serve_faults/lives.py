"""Connections and processes that end at a bad moment: drain, slow senders, stalled readers, disconnects."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import time

from .client import Broken, native, read_answer, request, reset, text_request
from .harness import Run, Server, address, idle, number, percentile


# ---- drain


class Drain:
    """Clients beside one SIGTERM, and what became of their requests."""

    def __init__(self, server: Server):
        self.host, self.port = address(server.url)
        self.answered = self.refused = self.lost = self.idle_closed = 0
        self.why: list[str] = []
        self.served = 0
        self.not_ready: float | None = None
        self.closed: float | None = None

    async def client(self, kind: int) -> None:
        """Sends one request after another until nobody listens any more: on a new connection each, or on one that is kept."""
        keep = kind % 2 == 0
        if kind % 4 < 2:
            path, body = text_request(30, stream=True)
            mark = b"data: [DONE]"
        else:
            path, body = native("items", n=5)
            mark = b'"timings"'
        data = request(path, body, close=not keep)
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                return
            used = 0
            with contextlib.suppress(OSError):
                while await self.exchange(reader, writer, data, mark, used) and keep:
                    used += 1
            writer.close()

    async def exchange(self, reader, writer, data: bytes, mark: bytes, used: int) -> bool:
        try:
            writer.write(data)
            answer = await read_answer(reader)
        except Broken as error:
            if used and not error.begun:
                # Closed while it was idle; the client's next request crossed it. Clients of HTTP/1.1 send such a request again.
                self.idle_closed += 1
            else:
                self.lost += 1
                self.why.append(f"{'within' if error.begun else 'before'} the answer: {error}")
            return False
        if answer.status == 503:
            self.refused += 1
            return False
        if answer.status != 200 or mark not in answer.body:
            self.lost += 1
            self.why.append(f"HTTP {answer.status} {answer.body[-80:]!r}")
            return False
        self.answered += 1
        self.served += 1
        return answer.keeps

    async def probe(self) -> None:
        """Asks for readiness on new connections until there are none."""
        data = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                self.closed = time.monotonic()
                return
            with contextlib.suppress(Broken, OSError):
                writer.write(data)
                answer = await read_answer(reader)
                if answer.status == 503 and self.not_ready is None:
                    self.not_ready = time.monotonic()
            writer.close()
            await asyncio.sleep(0.01)


async def drain_once(run: Run, server: Server, clients: int, rng: random.Random) -> tuple[Drain, int, float]:
    seen = Drain(server)
    tasks = [asyncio.create_task(seen.client(kind)) for kind in range(clients)]
    deadline = time.monotonic() + 10
    while seen.served < clients and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    probe = asyncio.create_task(seen.probe())
    await asyncio.sleep(rng.uniform(0, 0.1))
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.wait)
    took = time.monotonic() - begin
    await asyncio.wait_for(asyncio.gather(*tasks, probe), 10)
    return seen, code, took


def drain(run: Run) -> None:
    """SIGTERMs under load: accepted requests are answered, readiness turns first."""
    rounds, clients = run.pick(10, 200), 16
    rng = random.Random(run.seed)
    counts = dict.fromkeys(["answered", "refused", "lost", "idle_closed"], 0)
    bad_codes = not_first = warned = 0
    times, why = [], []
    args = ["--drain-delay-seconds", "0.3", *run.device_args(5)]
    run.say(f"{rounds} servers, each with {clients} clients (text streams of 30 tokens and lists; half keep their connections) and one SIGTERM")
    for turn in range(rounds):
        if turn == 1:
            run.say("… and so on")
        with quiet(run, turn > 0), run.serve(*args) as server:
            seen, code, took = asyncio.run(drain_once(run, server, clients, rng))
            complaints = server.complaints()
        for name in counts:
            counts[name] += getattr(seen, name)
        bad_codes += code != 0
        not_first += seen.not_ready is None or seen.closed is None or seen.not_ready >= seen.closed
        warned += bool(complaints)
        why += seen.why + [str(line) for line in complaints]
        times.append(took)
    for text in why[:5]:
        run.say(f"seen: {text}")
    run.none("accepted requests lost", counts["lost"], counts["answered"])
    run.none("exit codes other than 0", bad_codes, rounds)
    run.none("drains in which /readyz was not 503 before the listener closed", not_first, rounds)
    run.none("drains with a warning in the log", warned, rounds)
    run.note("requests written to a kept connection just as it was closed", f"{counts['idle_closed']} (not read by the server; {counts['refused']} told 503)")
    run.note("SIGTERM to exit, delay of 0.3 s included", f"median {percentile(times, 0.5):.2f} s, longest {max(times):.2f} s")


@contextlib.contextmanager
def quiet(run: Run, really: bool):
    """Does not print commands that repeat."""
    command = run.command
    if really:
        run.command = lambda argv: None
    try:
        yield
    finally:
        run.command = command


# ---- slow senders


async def dribble(where: tuple[str, int], first: bytes, rest: bytes, limit: float) -> tuple[float, bytes]:
    """Sends `first` at once and `rest` a byte per second; how long until the connection ended, and what was said."""
    reader, writer = await asyncio.open_connection(*where)
    begin, said = time.monotonic(), bytearray()

    async def send() -> None:
        writer.write(first)
        for at in range(len(rest)):
            await asyncio.sleep(1)
            writer.write(rest[at : at + 1])

    async def listen() -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(4096):
                said.extend(piece)

    sending = asyncio.create_task(send())
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(listen(), limit)
    took = time.monotonic() - begin
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await sending
    writer.transport.abort()
    return took, bytes(said)


async def dribble_all(where, count: int, limit: float):
    data = request(*native("items", n=5))
    head = data.index(b"\r\n\r\n") + 4
    jobs = [dribble(where, data[:1], data[1:], limit) for _ in range(count // 2)]
    jobs += [dribble(where, data[:head], data[head:], limit) for _ in range(count - count // 2)]
    ended = await asyncio.gather(*jobs)
    return ended[: count // 2], ended[count // 2 :]


def slow(run: Run) -> None:
    """Senders of a byte per second are closed in time, and nobody waits for them."""
    count, allowed = run.pick((200, 3.0), (1000, 10.0))
    with run.serve("--receive-seconds", f"{allowed:g}", *run.device_args(1)) as server:
        beside = run.bench(server.url, "--mix", "search=1,text=1", "--max-tokens", "8", "--concurrency", "2", "--duration", f"{allowed:g}s", wait=False)
        run.say(f"{count} senders: half dribble the head, half the body, a byte per second")
        heads, bodies = asyncio.run(dribble_all(server.address, count, allowed + 5))
        report = beside.report()
        done, _, metrics = server.wait_for(idle, 2)
        for name, ended in (("head", heads), ("body", bodies)):
            run.most(f"dribbled {name}: longest until closed, of {len(ended)}", max(took for took, _ in ended), allowed + 0.5, " s")
        run.none("dribbled bodies not told 408", sum(b" 408 " not in said for _, said in bodies), len(bodies))
        run.none("normal requests beside them that failed", report["errors"] + report["refused"], report["done"])
        run.note("normal requests beside them", f"{report['done_per_s']:.0f}/s, p99 {report['latency_ms']['e2e']['p99']:.1f} ms")
        run.figure("engine idle and ready afterwards", "yes", "yes" if done and server.get("/readyz")[0] == 200 else str(metrics), done)


# ---- stalled readers


def stalled_socket(where: tuple[str, int], data: bytes) -> socket.socket:
    """A connection whose answer is not read. Small windows and segments, as of a distant peer: the kernel's buffers hide little of the answer then."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    sock.settimeout(10)
    sock.connect(where)
    sock.sendall(data)
    return sock


def long_stream(server: Server, **more) -> bytes:
    """A stream as long as the model allows."""
    most = server.get("/v1/models")[1]["data"][0]["max_model_len"]
    messages = [{"role": "user", "content": "a b c"}]
    return request("/v1/chat/completions", {"messages": messages, "max_tokens": most - 100, "ignore_eos": True, "stream": True, **more})


def long_batch(lines: int) -> bytes:
    """A batch of lists of 20 items."""
    path, body = native("items", n=20)
    line = {"custom_id": "a", "url": path, "method": "POST", "body": body}
    return request("/v1/batch", (json.dumps(line).encode() + b"\n") * lines)


def read_rest(sock: socket.socket) -> int:
    """Bytes that were still to be had."""
    count = 0
    with contextlib.suppress(OSError):
        sock.settimeout(2)
        while piece := sock.recv(1 << 16):
            count += len(piece)
    sock.close()
    return count


def stall(run: Run, server: Server, what: str, data: bytes, count: int, patience: float) -> None:
    """So many readers of one kind, to the end of their connections."""
    before = server.memory_kib()
    begin = time.monotonic()
    readers = [stalled_socket(server.address, data) for _ in range(count)]
    most, running, open_most = before, 0.0, 0.0
    while True:
        metrics, passed = server.metrics(), time.monotonic() - begin
        most = max(most, server.memory_kib())
        running = max(running, metrics["num_requests_running"] + metrics["num_requests_waiting"])
        open_most = max(open_most, metrics["connections"] - 1)
        gone = metrics["connections"] <= 1 and idle(metrics)
        if gone or passed > patience + 20:
            break
        time.sleep(0.02)
    taken = [float(read_rest(sock)) for sock in readers]
    names = ("connections", "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    run.most(f"{what}: memory per stalled reader at the worst moment", (most - before) / count, 256, " KiB")
    state = f"{passed:.1f} s after the first request" if gone else str({name: metrics[name] for name in names})
    run.figure(f"{what}: all cut, engine idle, blocks free", f"<= {patience + 20:g} s", state, gone)
    run.note(f"{what}: what had happened", f"{open_most:.0f} connections and {running:.0f} requests at one time; the kernel took {number(percentile(taken, 0.5))} bytes per reader (median)")


def stalled(run: Run) -> None:
    """Readers that take nothing cost little and are cut."""
    count, patience = run.pick((100, 2.0), (500, 5.0))
    run.say(f"{count} readers of two texts at once; {count} of a text with 20 log-probabilities per token; {count // 5} of batches of 300 lists of 20 items")
    kinds = [
        ("two texts", count, lambda server: long_stream(server, n=2)),
        ("log-probabilities", count, lambda server: long_stream(server, logprobs=True, top_logprobs=20)),
        ("batches", count // 5, lambda server: long_batch(300)),
    ]
    for what, readers, data in kinds:
        # Memory once taken is kept by the allocator: each kind has a server of its own.
        with run.serve("--send-seconds", f"{patience:g}", *run.device_args(1)) as server:
            run.bench(server.url, "--mix", "search=1,text=1,mixed=1", "--requests", "500", "--concurrency", "16")
            server.wait_for(idle, 5)
            stall(run, server, what, data(server), readers, patience)
            status, _ = server.post(*native("items", n=5))
            run.figure(f"{what}: a normal request afterwards", "200", str(status), status == 200)


# ---- disconnects


async def disconnect(where, data: bytes, rng: random.Random, longest: float) -> None:
    """Sends a request, or a part of it, and is gone after a moment."""
    reader, writer = await asyncio.open_connection(*where)
    how = rng.random()
    part = data[: rng.randrange(1, len(data))] if how < 0.1 else data
    writer.write(part)
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(1 << 16) if how > 0.7 else asyncio.sleep(10), rng.expovariate(1 / longest))
    if rng.random() < 0.5:
        reset(writer)
    else:
        writer.close()


async def disconnect_all(where, count: int, seed: int, longest: float) -> None:
    rng = random.Random(seed)
    most = 64
    kinds = [
        request(*text_request(200, stream=True)),
        request(*text_request(200, stream=False)),
        request(*native("items", n=10)),
        request(*native("mixed", max_tokens=200), sse=True),
    ]
    running: set[asyncio.Task] = set()
    for _ in range(count):
        if len(running) >= most:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        running.add(asyncio.create_task(disconnect(where, rng.choice(kinds), rng, longest)))
    await asyncio.gather(*running)


def cancel(run: Run) -> None:
    """Clients that disappear at random moments leave nothing behind."""
    count = run.pick(1000, 10_000)
    with run.serve(*run.device_args(1)) as server:
        before = server.metrics()["requests_cancelled_total"]
        report = run.bench(server.url, "--requests", str(count // 2), "--cancel", "1", "--stream", "all", "--concurrency", "64", "--mix", "text=1,mixed=1,search=1,recommend=1", "--max-tokens", "100")
        run.say(f"{count - count // 2} sockets of our own, 64 at a time, closed or reset after an exponential time of mean 20 ms (a tenth within the request)")
        asyncio.run(disconnect_all(server.address, count - count // 2, run.seed, 0.02))
        done, took, metrics = server.wait_for(idle, 2)
        left = {name: metrics[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
        run.figure("nothing runs and no block is in use", "<= 2 s later", f"{took:.2f} s later" if done else str(left), done)
        cancelled = int(metrics["requests_cancelled_total"] - before)
        run.figure("requests that the engine saw cancelled", ">= 1 in 10", f"{number(cancelled)} of {number(count)}", cancelled >= count // 10)
        run.none("requests failed by the load generator's count", report["errors"])
        path, body = native("items", n=5)
        status, _ = server.post(path, body)
        run.figure("a normal request afterwards", "200", str(status), status == 200 and server.alive())
        run.none("log lines at warning or above", len(server.complaints()))
        for line in server.complaints()[:3]:
            run.say(f"seen: {line}")
