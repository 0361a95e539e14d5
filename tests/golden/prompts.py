#!/usr/bin/env python3
"""Writes prompts.jsonl: prompts and answers of the demonstration as transformers tokenizes them.

    python tests/golden/prompts.py [SIDEREAL]

The program draws requests and answers as typed parts; here, independently of it, items become the names of their tokens in plain text, the
chat template is applied and the whole string is tokenized. tests/it/dataset.rs holds the engine's tokens against these.
Needs transformers (training/requirements.txt). Run it again when the demonstration or the wordings change.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "src" / "demo" / "model"
PEOPLE = ["--users", "100", "--held-out", "10", "--seed", "0"]
SAMPLES = ["--samples", "80", "--seed", "11", "--as", "parts"]
MIX = "search=3,recommend=2,explain=3,profile=1,describe=1,find=1,type=1"


def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else str(HERE.parent.parent / "target" / "release" / "sidereal")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    catalog = {item["id"]: item for item in map(json.loads, (MODEL / "catalog.jsonl").read_text().splitlines())}
    layout = json.loads((MODEL / "sid_layout.json").read_text())
    names = {kind["name"]: kind["token"] for kind in layout["types"]}

    def span(item: str) -> str:
        kind, sid = catalog[item]["type"], catalog[item]["sid"]
        codes = (names[kind].format(level=level, code=code) for level, code in enumerate(sid))
        return layout["open"] + "".join(codes) + layout["close"]

    def written(parts: list[dict]) -> str:
        pieces = {"text": lambda part: part["text"], "item": lambda part: span(part["id"])}
        pieces["history"] = lambda part: "".join(map(span, part["items"]))
        return "".join(pieces[part["type"]](part) for part in parts)

    with tempfile.TemporaryDirectory() as folder:
        histories = f"{folder}/histories.jsonl"
        files = ["--catalog", str(MODEL / "catalog.jsonl")]
        subprocess.run([program, "dataset", "simulate", *files, *PEOPLE, "--out", histories], check=True)
        render = [program, "dataset", "render", *files, "--histories", histories, "--mix", MIX, *SAMPLES]
        drawn = subprocess.run(render, check=True, capture_output=True, text=True).stdout
    with (HERE / "prompts.jsonl").open("w") as out:
        for sample in map(json.loads, drawn.splitlines()):
            messages = [{"role": m["role"], "content": written(m["content"])} for m in sample["request"]["messages"]]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            answer = written(sample["answer"]) + tokenizer.eos_token
            if sample["request"]["output"] == "items":
                # The engine opens the span itself.
                prompt, answer = prompt + layout["open"], answer.removeprefix(layout["open"])
            ids = {"prompt_token_ids": prompt, "answer_token_ids": answer}
            ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in ids.items()}
            out.write(json.dumps(sample | ids, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
