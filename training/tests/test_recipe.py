"""The whole recipe, on a stand-in for `sidereal` and with a model of seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import FAKE, TESTS
from recipe import overlaid
from safetensors.torch import load_file

FILES = (
    "catalog.jsonl", "chat_template.jinja", "config.json", "generation_config.json", "learning_curve.json", "learning_curve.svg",
    "model.safetensors", "sid_layout.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def command(out, *more: str, config=TESTS / "tiny.toml") -> list[str]:
    return [sys.executable, str(TESTS.parent / "recipe.py"), "--out", str(out), "--config", str(config), "--sidereal", FAKE, *more]


def run(out, *more: str, **kwargs) -> str:
    """What a run that succeeds says. It is given no program: codes and rows are the stand-in's too."""
    done = subprocess.run(command(out, *more, **kwargs), capture_output=True, text=True, env=without_program())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_program() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "SIDEREAL"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "model"
    run(out)
    return out


def test_the_folder_is_complete(made):
    assert sorted(file.name for file in made.iterdir() if file.is_file()) == sorted(FILES)
    weights = load_file(made / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    eos = json.loads((made / "generation_config.json").read_text())["eos_token_id"]
    tokens = {token["id"]: token["content"] for token in json.loads((made / "tokenizer.json").read_text())["added_tokens"]}
    assert tokens[eos] == "<|im_end|>"
    assert json.loads((made / "config.json").read_text())["vocab_size"] == 400 + sum(t.startswith("<|sid") or "_" in t for t in tokens.values() if "im_" not in t)


def test_the_catalog_has_sids_and_popularity(made):
    catalog = [json.loads(line) for line in (made / "catalog.jsonl").read_text().splitlines()]
    assert len(catalog) == len({(item["type"], *item["sid"]) for item in catalog})
    histories = [json.loads(line) for line in (made / "build/histories/histories.jsonl").read_text().splitlines()]
    seen = sum(len(user["items"]) for user in histories if user["split"] == "train")
    assert sum(item["popularity"] for item in catalog) == seen > 0


def test_what_is_there_is_not_made_again(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "model")
    assert ": ..." not in run(out)
    changed = tmp_path / "changed.toml"
    changed.write_text((TESTS / "tiny.toml").read_text().replace("recommend=1", "recommend=2"))
    said = run(out, config=changed)
    assert [line.split(":")[0] for line in said.splitlines() if line.endswith("...")] == ["instruct_samples", "instruct", "export"]
    said = run(out, "--again", "instruct", config=changed)
    assert [line.split(":")[0] for line in said.splitlines() if line.endswith("...")] == ["instruct", "export"]


def test_a_killed_run_goes_on_and_ends_alike(made, tmp_path):
    out = tmp_path / "model"
    log = open(tmp_path / "log", "w")
    # A process group of its own, so that the stage, a process of its own, dies too.
    recipe = subprocess.Popen(command(out), stdout=log, stderr=log, start_new_session=True, env=without_program())
    try:
        state = out / "build/align.part/checkpoints/checkpoint-6/trainer_state.json"
        deadline = time.monotonic() + 300
        while not state.exists():
            assert recipe.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.005)
    finally:
        os.killpg(recipe.pid, signal.SIGKILL)
        recipe.wait()
    assert not (out / "build/align").exists()
    said = run(out)
    assert "warm_up: there" in said and "align 2/20" not in said and "align 20/20" in said
    curve = {stage["stage"]: stage["log"] for stage in json.loads((out / "learning_curve.json").read_text())}
    assert [entry["step"] for entry in curve["align"] if "loss" in entry] == list(range(2, 21, 2))
    whole, resumed = load_file(made / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_pretrained_folder_is_extended(made, tmp_path):
    run(tmp_path / "model", "--pretrained", str(made / "build/warm_up/model"))
    stages = json.loads((tmp_path / "model/learning_curve.json").read_text())
    assert [stage["stage"] for stage in stages] == ["align", "instruct"]
    assert (tmp_path / "model/tokenizer.json").read_text() == (made / "tokenizer.json").read_text()


def test_changes_reach_into_tables():
    assert overlaid({"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"d": 4}}}) == {"a": {"b": 1, "c": {"d": 4}}, "e": 3}
