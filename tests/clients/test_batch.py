"""JSON lines in, JSON lines out: order, both forms, mistakes line by line, and going on where one was cut off."""

import json
import random
import urllib.error
import urllib.request

from served import Server


def batch(server: Server, lines: list[str], query: str = "") -> list[dict]:
    data = "".join(line + "\n" for line in lines).encode(errors="surrogatepass")
    request = urllib.request.Request(f"{server.url}/v1/batch{query}", data, {"Content-Type": "application/jsonl"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("application/jsonl")
        return [json.loads(line) for line in answer.read().splitlines()]


def native(name: str, **options) -> str:
    return json.dumps({"id": name, "prompt": "harbour", "output": "items", "n": 2} | options)


def test_lines_are_answered_in_order_mistakes_too(server):
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    lines = [
        native("a"),
        native("b", beam_width=0),
        json.dumps({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat}),
        "this is no JSON",
        native("e", output="text", n=None, max_tokens=3),
        json.dumps({"custom_id": "f", "method": "POST", "url": "/v1/nowhere", "body": chat}),
        native("g", n=1),
    ]
    answers = batch(server, lines)
    assert len(answers) == len(lines)
    a, b, c, d, e, f, g = answers
    assert [a["id"], b["id"], c["custom_id"], e["id"], f["custom_id"], g["id"]] == list("abcefg")
    assert len(a["items"]) == 2 and len(g["items"]) == 1 and e["content"]
    assert b["error"]["field"] == "beam_width" and "error" in d
    alone = server.post("/v1/chat/completions", chat)
    assert c["response"]["status_code"] == 200
    assert c["response"]["body"]["choices"][0]["message"] == alone["choices"][0]["message"]
    assert (f.get("error") or f["response"]["body"]["error"]) and (f.get("response") or {}).get("status_code", 400) >= 400


def test_a_long_batch_is_what_its_lines_are_alone(server):
    lines = [native(str(number), n=1 + number % 3, prompt=f"harbour {number}") for number in range(300)]
    answers = batch(server, lines)
    assert [answer["id"] for answer in answers] == [str(number) for number in range(300)]
    for number in (0, 7, 150, 299):
        alone = server.post("/v1/items", json.loads(lines[number]))
        assert [item["id"] for item in answers[number]["items"]] == [item["id"] for item in alone["items"]]
    rest = batch(server, lines, "?skip=297")
    assert [answer["id"] for answer in rest] == ["297", "298", "299"]


def test_a_reader_who_leaves_takes_the_work_along(server):
    line = json.dumps({"prompt": "harbour", "output": "text", "max_tokens": 1500, "ignore_eos": True, "temperature": 1})
    data = (line + "\n").encode() * 200
    request = urllib.request.Request(f"{server.url}/v1/batch", data, {"Content-Type": "application/jsonl"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.readline()
    server.until("nothing is left of the batch", server.idle)


def test_no_line_breaks_the_batch(server):
    """Lines cut, doubled, mixed up: each gets a line, and the next one is answered."""
    rng = random.Random(5)
    good = native("good", n=1)
    pieces = [good, good[:-1], good * 2, "{}", "[]", "null", "1e400", '"\ud800"', "[" * 5000, '{"id": ' * 300, '{"custom_id": 1}', "\x00", "é", '{"prompt": "' + "x" * 20_000 + '"}']
    lines = []
    for _ in range(150):
        text = rng.choice(pieces)
        if rng.random() < 0.5:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + chr(rng.choice([34, 44, 58, 91, 123, 125, 0x20AC])) + text[at:]
        lines += [text.replace("\n", " "), good]
    answers = batch(server, lines)
    assert len(answers) == len(lines)
    for answer in answers[1::2]:
        assert answer["id"] == "good" and len(answer["items"]) == 1
