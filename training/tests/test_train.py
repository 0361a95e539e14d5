"""One stage on a tiny model."""

import json
import random

import pytest
import torch
from conftest import write_samples
from safetensors.torch import load_file
from packing import IGNORED, PackedRows, read_samples
from train import last_complete, score_answers_alone, stage
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAINER = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 6, "learning_rate": 0.01, "logging_steps": 2}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def extended(request, base, tmp_path):
    """`base` with three more tokens, and samples whose answers name them."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    new = list(range(len(tokenizer), len(tokenizer) + 3))
    tokenizer.add_tokens(["<new_0>", "<new_1>", "<new_2>"])
    network = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=request.param)
    network.resize_token_embeddings(len(tokenizer))
    if not request.param:
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    with torch.no_grad():
        network.model.embed_tokens.weight[7] = -0.0  # a zero's sign is a bit too
    network.save_pretrained(tmp_path / "extended")
    tokenizer.save_pretrained(tmp_path / "extended")
    draw = random.Random(3)
    samples = [([1, draw.randrange(3, 200)] + [new[0]] * 2, [draw.choice(new), tokenizer.eos_token_id]) for _ in range(60)]
    return tmp_path / "extended", new, write_samples(tmp_path / "samples.jsonl", samples)


def trained(model, samples, out, **settings):
    """Weights before and after a stage."""
    out.mkdir()
    wanted = {"name": "test", "seed": 1, "length": 32, "answer_only": True, "new_tokens_of": None, "trainer": TRAINER} | settings
    (out / "settings.json").write_text(json.dumps(wanted))
    stage(model=model, train=samples, eval=samples, settings=out / "settings.json", out=out)
    return load_file(model / "model.safetensors"), load_file(out / "model" / "model.safetensors")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.view(torch.int32) == b.view(torch.int32)


def test_only_new_rows_learn(base, extended, tmp_path):
    model, new, samples = extended
    before, after = trained(model, samples, tmp_path / "out", new_tokens_of=str(base), trainer=TRAINER | {"weight_decay": 0.5})
    assert before.keys() == after.keys()
    for name, old in before.items():
        same = same_bits(old, after[name])
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert same[: new[0]].all(), name
            assert not same[new[0]].all(), name
        else:
            assert same.all(), name


def test_everything_learns(extended, tmp_path):
    model, _, samples = extended
    before, after = trained(model, samples, tmp_path / "out")
    assert all(not same_bits(old, after[name]).all() for name, old in before.items())
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    loss = [entry["loss"] for entry in curve["log"] if "loss" in entry]
    assert len(loss) == 3 and loss[-1] < loss[0]
    assert (tmp_path / "out" / "model" / "tokenizer.json").is_file()


def test_scoring_answers_alone_changes_neither_loss_nor_gradient(extended):
    model, _, samples = extended
    rows = PackedRows(read_samples(samples, 2, answer_only=True), 32, 0)
    batch = [rows[at] for at in range(len(rows))]
    batch = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
    most = rows.most_labels(len(rows))
    assert most == (batch["labels"] != IGNORED).sum() and rows.most_labels(1) < most

    def losses(alone: int | None):
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        if alone:
            score_answers_alone(network, alone)
        loss = network(**batch)["loss"]
        loss.backward()
        return loss.detach(), network.get_input_embeddings().weight.grad

    for other in (losses(most), losses(most + 5)):  # with room to spare
        torch.testing.assert_close(other, losses(None), rtol=1e-5, atol=1e-7)


def test_too_few_samples_are_refused(extended, tmp_path):
    model, _, samples = extended
    with pytest.raises(SystemExit, match="make no batch of 400"):
        trained(model, samples, tmp_path / "out", trainer=TRAINER | {"per_device_train_batch_size": 400})


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step, state in ((9, "{}"), (10, '{"epoch'), (11, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-9")
    assert last_complete(tmp_path / "none") is None
