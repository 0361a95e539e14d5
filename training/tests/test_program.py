"""What the recipe expects of `sidereal`. Skipped without $SIDEREAL."""

import json
import subprocess
import sys

import torch
from conftest import TESTS
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYOUT = {"open": "<|sid_begin|>", "close": "<|sid_end|>", "types": [{"name": "book", "levels": [4, 4, 2], "token": "<book_{level}_{code}>"}]}


def test_extending_keeps_old_logits(sidereal, base, tmp_path):
    (tmp_path / "layout.json").write_text(json.dumps(LAYOUT))
    extended = tmp_path / "extended"
    subprocess.run([sidereal, "sid", "extend", "--model", base, "--layout", tmp_path / "layout.json", "--out", extended], check=True)
    ids = AutoTokenizer.from_pretrained(base)("Find the film by Akira Kurosawa.", return_tensors="pt").input_ids
    assert torch.equal(ids, AutoTokenizer.from_pretrained(extended)("Find the film by Akira Kurosawa.", return_tensors="pt").input_ids)
    with torch.no_grad():
        old, new = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits for folder in (base, extended))
    assert new.shape[-1] == old.shape[-1] + 12
    assert torch.equal(old.view(torch.int32), new[..., : old.shape[-1]].contiguous().view(torch.int32))


def made(sidereal: str, out, *more: str) -> str:
    recipe = [sys.executable, str(TESTS.parent / "recipe.py"), "--out", str(out), "--sidereal", sidereal, *more]
    done = subprocess.run(recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_smoke_learns_and_answers(sidereal_dataset, tmp_path):
    out = tmp_path / "model"
    made(sidereal_dataset, out, "--smoke")
    for stage in json.loads((out / "learning_curve.json").read_text()):
        for key in ("loss", "eval_loss"):
            values = [entry[key] for entry in stage["log"] if key in entry]
            assert values[-1] < values[0], f"{stage['stage']}: {key} {values}"
    catalog = {json.loads(line)["id"] for line in (out / "catalog.jsonl").read_text().splitlines()}
    words = ["--prompt", "A film by Akira Kurosawa", "--output", "items", "-n", "5", "--json"]
    answer = subprocess.run(
        [sidereal_dataset, "generate", "--model", out, "--catalog", out / "catalog.jsonl", *words],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    items = [item["id"] for item in json.loads(answer)["items"]]
    assert len(items) == 5 and catalog.issuperset(items)
    same_ids_as_transformers(sidereal_dataset, out)


def same_ids_as_transformers(sidereal: str, out) -> None:
    """`dataset render` with a model gives the ids that transformers gives the same text."""
    base, build = out / "build/untrained", out / "build/histories"
    files = ["--catalog", build / "catalog.jsonl", "--histories", build / "histories.jsonl"]
    how = ["--mix", "search=1,recommend=1,explain=1,profile=1,describe=1,find=1,type=1", "--samples", "300", "--seed", "4"]
    for name, kind in (("ids", ["--model", base, "--items", "titles"]), ("text", ["--as", "text"])):
        subprocess.run([sidereal, "dataset", "render", *files, *kind, *how, "--out", out / name], check=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids, text = ([json.loads(line) for line in (out / name).read_text().splitlines()] for name in ("ids", "text"))
    assert len(ids) == len(text) == 300
    for rendered, sample in zip(ids, text):
        chat = [{"role": "user", "content": sample["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert rendered["prompt_token_ids"] == tokenizer(prompt).input_ids
        answer = tokenizer(sample["answer"]).input_ids
        assert rendered["answer_token_ids"] in (answer, answer + [tokenizer.eos_token_id])
