"""OpenAI's own client against the server, unchanged: what it parses, what it raises."""

import asyncio
import base64
import itertools
import tempfile

import openai
import pytest
from served import Server

KEY = "sk-test-0123456789abcdef"
OTHER = "sk-other-0123456789abcde"
HELLO = [{"role": "user", "content": "Describe the sea."}]


def client_of(server: Server, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0, timeout=60, **options)


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def chat(client, model):
    def ask(messages=None, /, **options):
        return client.chat.completions.create(model=model, messages=messages or HELLO, **options)

    return ask


def text_of(stream) -> tuple[str, list, list]:
    """The joined content of a stream, its chunks, and the finish reasons met."""
    chunks = list(stream)
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in deltas)
    return text, chunks, [choice.finish_reason for choice in deltas if choice.finish_reason]


def test_models_are_listed_and_found(client, model):
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_a_chat_has_text_a_reason_and_usage(chat):
    answer = chat(max_tokens=12, temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 12 and usage.prompt_tokens > 4
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert chat(max_tokens=12, temperature=0).choices[0].message.content == choice.message.content


def test_a_stream_is_the_answer_in_pieces(chat):
    options = {"max_tokens": 40, "temperature": 0.8, "seed": 5}
    whole = chat(**options)
    text, chunks, reasons = text_of(chat(stream=True, stream_options={"include_usage": True}, **options))
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert text_of(chat(stream=True, **options))[1][-1].usage is None


def test_seeds_decide(chat):
    def drawn(seed):
        return chat(max_tokens=48, temperature=1.5, seed=seed).choices[0].message.content

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in range(8, 14)}) > 1


def test_choices_are_the_requests_of_following_seeds(chat):
    options = {"max_tokens": 24, "temperature": 1.2}
    several = chat(n=3, seed=20, **options)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    alone = [chat(seed=20 + i, **options).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in several.choices] == alone
    pieces = ["", "", ""]
    for chunk in chat(n=3, seed=20, stream=True, **options):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == alone


def test_stop_strings_end_the_text_and_are_not_in_it(chat):
    # Something that a long answer holds in its middle.
    text = chat(max_tokens=60, temperature=0).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    answer = chat(max_tokens=60, temperature=0, stop=[stop, "\u0001never\u0001"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
    streamed, _, reasons = text_of(chat(max_tokens=60, temperature=0, stop=stop, stream=True))
    assert (streamed, reasons) == (expected, ["stop"])


def test_chat_log_probabilities_spell_the_text(chat):
    answer = chat(max_tokens=10, temperature=0, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        scores = [top.logprob for top in entry.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        # Greedy: what was taken is the likeliest that the state allows; no alternative is likelier than the first.
        assert entry.logprob <= scores[0] + 1e-4
    spelled = b"".join(bytes(entry.bytes or []) for entry in entries).decode(errors="ignore")
    assert spelled.startswith(answer.choices[0].message.content)
    streamed = []
    for chunk in chat(max_tokens=10, temperature=0, logprobs=True, top_logprobs=3, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def test_completions_of_text_and_of_tokens_agree(client, model, server):
    prompt = "The sea is"
    tokens = server.post("/tokenize", {"prompt": prompt})["tokens"]
    assert server.post("/detokenize", {"tokens": tokens})["prompt"] == prompt
    options = {"model": model, "max_tokens": 12, "temperature": 0, "logprobs": 2}
    by_text = client.completions.create(prompt=prompt, **options)
    by_tokens = client.completions.create(prompt=tokens, **options)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    both = client.completions.create(prompt=[prompt, prompt + " salt"], **options)
    assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == by_text.choices[0].text
    lists = by_text.choices[0].logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == by_text.usage.completion_tokens
    assert lists.text_offset[0] == 0 and lists.text_offset == sorted(lists.text_offset)
    pieces = list(client.completions.create(prompt=prompt, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == by_text.choices[0].text
    assert pieces[-1].usage.prompt_tokens == by_text.usage.prompt_tokens == len(tokens)
    default = client.completions.create(model=model, prompt=prompt, temperature=0)
    assert default.usage.completion_tokens <= 16


def test_a_choice_comes_with_its_probabilities(chat):
    words = ["salt", "sweet", "an answer of several words"]
    answer = chat(extra_body={"choice": words})
    scores = answer.choices[0].choice_scores
    assert sorted(score["text"] for score in scores) == sorted(words)
    assert answer.choices[0].message.content == scores[0]["text"]
    assert abs(sum(score["probability"] for score in scores) - 1) < 1e-5
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    same = chat(extra_body={"structured_outputs": {"choice": words}})
    assert same.choices[0].message.content == answer.choices[0].message.content
    assert chat(extra_body={"guided_choice": ["only"]}).choices[0].message.content == "only"


def check_places(text: str, items: list[dict], server: Server) -> None:
    """Items stand where they say they stand, and are the catalog's."""
    for item in items:
        known = server.get(f"/v1/catalog/item?id={item['id']}")
        assert known["sid"] == item["sid"] and known["type"] == item["type"]
        assert text[item["start"] : item["end"]] == (known["title"] or item["id"])
    starts = [item["start"] for item in items]
    assert starts == sorted(starts) and len({tuple(item["sid"]) + (item["type"],) for item in items}) == len(items)


def test_items_in_text_have_their_places(chat, server):
    prompt = [{"role": "user", "content": "Recommend an item and say why.\nQuery: science fiction films\nTarget item type: film\nOutput: mixed"}]
    found = 0
    for seed in range(40):
        options = {"max_tokens": 120, "temperature": 1, "seed": seed, "extra_body": {"output": "mixed"}}
        whole = chat(prompt, **options).choices[0].message
        items = getattr(whole, "items", None) or []
        check_places(whole.content, items, server)
        found += len(items)
        streamed, text = [], ""
        for chunk in chat(prompt, stream=True, **options):
            for choice in chunk.choices:
                named = getattr(choice.delta, "items", None) or []
                # One event per item, and the item is all of it.
                assert len(named) <= 1
                if named:
                    assert choice.delta.content == whole.content[named[0]["start"] : named[0]["end"]]
                streamed += named
                text += choice.delta.content or ""
        assert text == whole.content and streamed == items
        if found > 2:
            break
    assert found > 0, "forty drawn answers named no item: the test shows nothing"


def test_a_list_of_items_is_a_list_of_choices(chat, server):
    body = {"output": "items", "return_attributes": ["year"]}
    answer = chat([{"role": "user", "content": "Find an item.\nQuery: harbour"}], n=6, extra_body=body)
    assert [choice.index for choice in answer.choices] == list(range(6))
    scores = []
    for choice in answer.choices:
        (item,) = choice.message.items
        known = server.get(f"/v1/catalog/item?id={item['id']}")
        assert choice.message.content == known["title"] and choice.finish_reason == "stop"
        assert item["attributes"]["year"] == known["attributes"].get("year")
        scores.append(item["score"])
    assert scores == sorted(scores, reverse=True)
    native = server.post("/v1/items", {"messages": [{"role": "user", "content": "Find an item.\nQuery: harbour"}], "n": 6})
    assert [item["id"] for item in native["items"]] == [choice.message.items[0]["id"] for choice in answer.choices]
    by_beam = chat([{"role": "user", "content": "Find an item.\nQuery: harbour"}], n=6, extra_body={"output": "items", "use_beam_search": True})
    assert len(by_beam.choices) == 6


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"extra_body": {"output": "items", "beam_width": 0}}, "beam_width"),
        ({"extra_body": {"output": "items", "filter": {"attr": "nonsense", "eq": 1}}}, "filter"),
        ({"extra_body": {"beam_width": 4}}, "beam_width"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_mistakes_are_named(chat, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(**options)
    error = caught.value
    assert error.status_code == 400 and error.type == "invalid_request_error"
    assert error.param.startswith(param) and param in error.body["message"], error.body


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-none", messages=HELLO)
    assert caught.value.param == "model"


def test_thirty_two_at_once(server, model):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:

            async def one(seed, stream):
                options = {"model": model, "messages": HELLO, "max_tokens": 32, "temperature": 1, "seed": seed}
                if not stream:
                    return (await client.chat.completions.create(**options)).choices[0].message.content
                chunks = [chunk async for chunk in await client.chat.completions.create(stream=True, **options)]
                return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

            # Each seed twice, once in pieces: together they are what they are alone, since the CPU is reproducible.
            return await asyncio.gather(*(one(seed, stream) for seed, stream in itertools.product(range(16), (False, True))))

    answers = asyncio.run(all_of_them())
    assert len(answers) == 32
    for whole, streamed in zip(answers[::2], answers[1::2], strict=True):
        assert whole == streamed
    assert len(set(answers)) > 8


def test_leaving_in_the_middle_frees_the_request(client, model, server):
    cancelled = server.metric("sidereal:requests_cancelled_total")
    # Long enough that it cannot be over by then: nothing ends it but the model's positions.
    options = {"model": model, "messages": HELLO, "temperature": 1, "seed": 1, "extra_body": {"ignore_eos": True}}
    for attempt in range(5):
        with client.chat.completions.create(stream=True, **options) as stream:
            for _ in range(2 + attempt):
                next(iter(stream))
        server.until("the request is gone", server.idle)
    assert server.metric("sidereal:requests_cancelled_total") > cancelled
    assert client.models.list().data[0].id == model


def test_keys_are_asked_for():
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as keys:
        keys.write(f'[keys]\ntests = "{KEY}"\n[admin]\nops = "{OTHER}"\n')
        keys.flush()
        with Server("--api-keys", keys.name, key=KEY) as server:
            for wrong in ("none", KEY.upper(), KEY[:-1], KEY + "x"):
                with openai.OpenAI(base_url=f"{server.url}/v1", api_key=wrong, max_retries=0) as client, pytest.raises(openai.AuthenticationError):
                    client.models.list()
            with client_of(server) as client:
                model = client.models.list().data[0].id
                answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4)
                assert answer.choices[0].message.content is not None
            # The page's way: the key as a password.
            basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
            assert server.ask("/", headers={"Authorization": f"Basic {basic}"})[0] == 200
            assert server.ask("/", headers={"Authorization": ""})[0] == 401
            assert server.ask("/readyz", headers={"Authorization": ""})[0] == 200
            assert server.ask("/admin/keys/reload", {}, admin=True)[0] == 403
            theirs = {"Authorization": f"Bearer {OTHER}"}
            assert server.ask("/admin/keys/reload", {}, admin=True, headers=theirs) == (200, {"keys": 2})


def test_a_full_queue_is_a_rate_limit():
    with Server("--max-requests", "1") as server, client_of(server) as client:
        model = client.models.list().data[0].id
        options = {"model": model, "messages": HELLO, "extra_body": {"ignore_eos": True}}
        with client.chat.completions.create(stream=True, temperature=1, **options) as stream:
            next(iter(stream))
            # It runs on while another one is refused; should it be over before, there is nothing to see, and the test fails.
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**options)
        error = caught.value
        assert error.type == "overloaded_error" and float(error.response.headers["retry-after"]) >= 1
        assert float(error.response.headers["retry-after-ms"]) > 0
        server.until("the first one is gone", server.idle)
        # The client by itself comes again when it is told to.
        patient = client.with_options(max_retries=5)
        assert patient.chat.completions.create(model=model, messages=HELLO, max_tokens=4).choices


def test_a_deadline_ends_a_request(client, model):
    options = {"model": model, "messages": HELLO, "temperature": 1, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(extra_headers={"x-request-timeout-ms": "1"}, **options)
    assert caught.value.status_code == 504 and caught.value.type == "timeout_error"


def test_ids_and_traces_come_back(client, model):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    raw = client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1", "traceparent": trace})
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["traceparent"].split("-")[1] == trace.split("-")[1] and raw.headers["traceparent"] != trace
