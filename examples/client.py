#!/usr/bin/env python3
"""Talks to a running `sidereal serve` with OpenAI's client: text with items in it, a ranked list, a choice, errors.

    pip install openai
    python examples/client.py [--url http://127.0.0.1:8000/v1] [--key KEY]
"""

import argparse

import openai


def stream_with_items(client: openai.OpenAI, model: str) -> None:
    """Prints text as it comes; items stand in it as their titles, and come with their data beside the piece of text that is theirs."""
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Recommend an item and say why.\nQuery: jazz albums\nTarget item type: album\nOutput: mixed"}],
        max_tokens=60,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"output": "mixed"},
    )
    items = []
    for chunk in stream:
        if chunk.choices:
            delta = chunk.choices[0].delta
            print(delta.content or "", end="", flush=True)
            items += getattr(delta, "items", None) or []
        elif chunk.usage:
            print(f"\n  ({chunk.usage.completion_tokens} tokens)")
    for item in items:
        print(f"  named: {item['id']} at characters {item['start']} to {item['end']}")


def ranked_list(client: openai.OpenAI, model: str) -> None:
    """Asks for items alone: each choice is one item, best first, found by exact beam search among those that pass the filter."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Find an item.\nQuery: thriller films\nTarget item type: film\nOutput: items"}],
        n=5,
        extra_body={"output": "items", "filter": {"attr": "year", "ge": 1990}, "return_attributes": ["year"]},
    )
    for choice in answer.choices:
        (item,) = choice.message.items
        print(f"  {item['score']:8.3f}  {item['id']:12} {choice.message.content} {item['attributes']}")


def native_list(client: openai.OpenAI, history: list[str]) -> None:
    """The native route takes typed parts: items enter the prompt by their ids, never as text that looks like one."""
    content = [
        {"type": "text", "text": "Recommend the next item.\nHistory: "},
        {"type": "history", "items": history},
        {"type": "text", "text": "\nTarget item type: book\nOutput: items"},
    ]
    answer = client.post(
        "/items",
        body={"messages": [{"role": "user", "content": content}], "n": 3, "item_types": ["book"], "exclude": history},
        cast_to=dict,
    )
    for item in answer["items"]:
        print(f"  {item['score']:8.3f}  {item['id']:12} {item.get('title')}")
    print("  milliseconds:", answer["timings"])


def choose(client: openai.OpenAI, model: str) -> None:
    """A choice between given strings, with the probability of each."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Is the sea salt or sweet?"}],
        extra_body={"choice": ["salt", "sweet"]},
    )
    for score in answer.choices[0].choice_scores:
        print(f"  {score['probability']:.3f}  {score['text']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none needed")
    options = parser.parse_args()
    # The client tries again by itself when the server says 429, after the time that the server names.
    client = openai.OpenAI(base_url=options.url, api_key=options.key, timeout=60, max_retries=3)
    model = client.models.list().data[0].id
    print(f"{model}\n\ntext with items:")
    stream_with_items(client, model)
    print("\na ranked list:")
    ranked_list(client, model)
    print("\na list from a history, by the native route:")
    native_list(client, ["film:alien", "book:dune"])
    print("\na choice:")
    choose(client, model)
    print("\na mistake:")
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], temperature=-1)
    except openai.BadRequestError as error:
        print(f"  {error.param}: {error.body['message']}")


if __name__ == "__main__":
    main()
