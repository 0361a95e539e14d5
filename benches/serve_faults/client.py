"""Requests on sockets of our own: what a load generator that behaves well does not do."""

import asyncio
import json
import socket
import struct


def request(path: str, body, *, close: bool = False, sse: bool = False, host: str = "127.0.0.1") -> bytes:
    """The bytes of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(data)}",
    ]
    lines += ["connection: close"] * close + ["accept: text/event-stream"] * sse
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def text_request(max_tokens: int, *, stream: bool, prompt: str = "a b c", **more) -> tuple[str, dict]:
    """Path and body of a text."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream, **more}
    return "/v1/completions", body


def native(output: str, **more) -> tuple[str, dict]:
    """Path and body of a native request."""
    messages = [{"role": "user", "content": "Find an item.\nQuery: the harbour"}]
    return "/v1/items", {"messages": messages, "output": output, **more}


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Broken(Exception):
    """A connection ended before its answer did. `begun`: a byte of the answer had come."""

    def __init__(self, begun: bool, why: str):
        super().__init__(why)
        self.begun = begun


class Answer:
    """A whole answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def keeps(self) -> bool:
        """Whether the connection may be used again."""
        return self.headers.get("connection", "").lower() != "close"

    def whole_stream(self, mark: bytes) -> bool:
        """Whether a stream has its end mark."""
        return mark in self.body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Reads one answer, in chunks or of a length."""
    begun = False
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        begun = True
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join([chunk async for chunk in chunks(reader)])
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError as error:
        raise Broken(begun or bool(error.partial), "the connection was closed") from error
    except OSError as error:
        raise Broken(begun, str(error)) from error
    return Answer(status, headers, body)


async def chunks(reader: asyncio.StreamReader):
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await reader.readexactly(size + 2)
        if size == 0:
            return
        yield data[:-2]
