#!/usr/bin/env python3
"""Stands in for `sidereal` where the tests have none: the same commands, options and files, for the steps of the recipe.

Its samples are the simplest of each kind, its codes are the row number's digits, and its new rows are what transformers draws.
With $SIDEREAL set to the program, that is asked for everything but data sets.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path


def main() -> None:
    command, arguments = " ".join(sys.argv[1:3]), sys.argv[3:]
    if "SIDEREAL" in os.environ and not command.startswith("dataset"):
        os.execv(os.environ["SIDEREAL"], [os.environ["SIDEREAL"], *sys.argv[1:]])
    {"sid fit": fit, "sid extend": extend, "dataset simulate": simulate, "dataset render": render}[command](arguments)


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def parsed(arguments: list[str], *names: str, flags: tuple[str, ...] = (), files: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}")
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    if files:
        parser.add_argument("files", nargs="+")
    return parser.parse_intermixed_args(arguments)


def fit(arguments: list[str]) -> None:
    import numpy as np

    options = parsed(arguments, "levels", "seed", "out", "codes", flags=("unique", "json"), files=True)
    first, second = map(int, options.levels.split(","))
    types = []
    for file in options.files:
        name, path = file.split("=")
        at = np.arange(len(np.load(path)))
        codes = np.stack([at % first, at // first % second, at // (first * second)], axis=1).astype(np.uint16)
        np.save(options.codes.replace("{type}", name), codes)
        types.append({"name": name, "levels": [{"codes": codes} for codes in (first, second, int(codes[:, 2].max()) + 1)]})
    Path(options.out).touch()
    print(json.dumps({"types": types}))


def extend(arguments: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = parsed(arguments, "model", "layout", "init", "codebooks", "seed", "out")
    torch.manual_seed(int(options.seed))
    layout = json.loads(Path(options.layout).read_text())
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.add_tokens([layout["open"], layout["close"]] + [
        of_type["token"].format(level=level, code=code)
        for of_type in layout["types"] for level, codes in enumerate(of_type["levels"]) for code in range(codes)
    ])  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(options.model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (Path(options.out) / "sid_layout.json").write_text(json.dumps(layout))


def simulate(arguments: list[str]) -> None:
    options = parsed(arguments, "catalog", "users", "held-out", "seed", "out")
    draw, items = random.Random(options.seed), read(options.catalog)
    users = []
    for user in range(int(options.users) + int(options.held_out)):
        liked = draw.choice(items)["genres"][0]
        near = [item["id"] for item in items if liked in item["genres"]]
        split = "train" if user < int(options.users) else "test"
        users.append({"user": user, "split": split, "items": draw.sample(near, min(len(near), draw.randint(3, 8)))})
    write(options.out, users)


def render(arguments: list[str]) -> None:
    names = ("catalog", "histories", "model", "as", "items", "mix", "samples", "split", "seed", "out")
    options = parsed(arguments, *names)
    draw = random.Random(f"{options.seed} {options.split}")
    items = {item["id"]: item for item in read(options.catalog)}
    users = [user for user in read(options.histories) if user["split"] == options.split]
    tasks, weights = zip(*(part.split("=") for part in options.mix.split(",")))
    if options.model:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.model)
    spans = options.model and options.items != "titles"

    def name(item: dict) -> str:
        codes = "".join(f"<{item['type']}_{level}_{code}>" for level, code in enumerate(item["sid"]))
        return f"<|sid_begin|>{codes}<|sid_end|>" if spans else item["title"]

    rows = []
    for task in draw.choices(tasks, [float(weight) for weight in weights], k=int(options.samples)):
        item = draw.choice(list(items.values()))
        *past, last = [items[id] for id in draw.choice(users)["items"]]
        history = ", ".join(map(name, past))
        prompt, answer = {
            "search": (f"Search: {item['about']}", name(item)),
            "recommend": (f"Recommend the next {last['type']}.\nHistory: {history}", name(last)),
            "explain": (f"Explain what is next.\nHistory: {history}", f"You may like {name(last)}, for its {last['genres'][0]}."),
            "profile": (f"Who is this?\nHistory: {history}", f"Likes {last['genres'][0]}."),
            "describe": (f"Describe {name(item)}.", item["about"]),
            "find": (f"Find the {item['type']} by {item['creator']} of {item['year']}.", name(item)),
            "type": (f"What is {name(item)}?", item["type"]),
        }[task]
        row = {"task": task, "prompt": prompt, "answer": answer}
        if options.model:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False).input_ids
            answer_ids = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            row = {"task": task, "prompt_token_ids": ids, "answer_token_ids": answer_ids}
        rows.append(row)
    write(options.out, rows)


if __name__ == "__main__":
    main()
