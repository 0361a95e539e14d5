"""One stage of training: a model folder and samples in, a model folder and its learning curve out.

    python train.py --model DIR --train FILE.jsonl --eval FILE.jsonl --settings FILE.json --out DIR
    torchrun --nproc-per-node 8 train.py …

A stage that was killed goes on from its last checkpoint under OUT/checkpoints.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
    set_seed,
)
from transformers.trainer_utils import sort_checkpoints

from packing import IGNORED, PackedRows, read_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "eval", "settings", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    stage(**vars(parser.parse_args()))


def stage(model: Path, train: Path, eval: Path, settings: Path, out: Path) -> None:
    """Writes OUT/model and OUT/curve.json. Settings: `name`, `seed`, `length`, `answer_only`, `trainer`, and `new_tokens_of`, the
    folder whose vocabulary stays as it is (null: everything learns)."""
    wanted = json.loads(settings.read_text())
    set_seed(wanted["seed"])
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    on_gpu = torch.cuda.is_available()
    # On a CPU the backward pass of PyTorch's fused attention takes 40 % of a step at these sizes; compiled plain attention does not.
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa" if on_gpu else "eager"
    )
    frozen = None
    if wanted["new_tokens_of"]:
        frozen = freeze_all_but(network, new_ids(tokenizer, wanted["new_tokens_of"]))
        before = [weight.detach().clone() for weight, _ in frozen]
    rows = {
        name: PackedRows(
            read_samples(path, tokenizer.eos_token_id, wanted["answer_only"]),
            wanted["length"],
            tokenizer.pad_token_id,
            additive=not on_gpu,
        )
        for name, path in (("train", train), ("eval", eval))
    }
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        seed=wanted["seed"],
        use_cpu=not on_gpu,
        bf16=has_bf16(on_gpu),
        save_total_limit=2,  # a kill while one is written leaves the other
        dataloader_drop_last=True,  # static shapes
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        **wanted["trainer"],
    )
    if arguments.n_gpu > 1:
        raise SystemExit("several GPUs want a process each: torchrun --nproc-per-node N train.py, or --launch of recipe.py; or name one in CUDA_VISIBLE_DEVICES")
    if frozen:
        arguments.weight_decay = 0.0  # it would move the frozen rows
    check_rows(wanted["name"], rows, arguments)
    if wanted["answer_only"]:
        score_answers_alone(network, max(rows[kind].most_labels(batch) for kind, batch in batches(arguments).items()))
    progress = Progress(wanted["name"], rows["train"], arguments)
    trainer = Trainer(
        model=network, args=arguments, train_dataset=rows["train"], eval_dataset=rows["eval"], callbacks=[progress]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_complete(out / "checkpoints"))
    if frozen:
        for (weight, mask), old in zip(frozen, before):
            moved = (weight.detach().cpu().view(torch.int32) != old.view(torch.int32)).any(1) & mask[:, 0].cpu()
            assert not moved.any(), f"{int(moved.sum())} rows of old tokens moved, the first is {int(moved.nonzero()[0])}"
    trainer.save_model(str(out / "model"))
    if trainer.is_world_process_zero():
        copy_all_but_weights(model, out / "model")
        curve = {"stage": wanted["name"], "tokens_per_second": progress.speed(), "log": trainer.state.log_history}
        (out / "curve.json").write_text(json.dumps(curve, indent=1))
        shutil.rmtree(out / "checkpoints", ignore_errors=True)


def new_ids(tokenizer, old_folder: str) -> list[int]:
    """Ids of the tokens that the vocabulary of `old_folder` lacks."""
    old = AutoTokenizer.from_pretrained(old_folder).get_vocab()
    return sorted(id for token, id in tokenizer.get_vocab().items() if token not in old)


def freeze_all_but(network, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Lets only the rows `ids` of embedding and head learn; their matrices, each with a mask [rows, 1] of the frozen ones.

    A row whose gradient is always zero has zero moments, and without weight decay AdamW leaves it bit for bit as it is.
    """
    network.requires_grad_(False)
    matrices = {id(weight): weight for weight in (network.get_input_embeddings().weight, network.get_output_embeddings().weight)}
    frozen = []
    for weight in matrices.values():  # one where they are tied
        weight.requires_grad_(True)
        mask = torch.ones(len(weight), 1, dtype=torch.bool)
        mask[ids] = False
        weight.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask.to(gradient.device), 0))
        frozen.append((weight, mask))
    return frozen


def score_answers_alone(network, most: int) -> None:
    """Lets the head, a fifth of the work, score what is learnt alone: `most` tokens of a batch, always as many, so that shapes stay static.

    For models whose logits are the head's product and nothing more, as those that the engine knows are."""
    base, head = network.base_model, network.get_output_embeddings()

    def forward(input_ids, attention_mask, position_ids, labels, num_items_in_batch=None, **_):
        hidden = base(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)[0]
        following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        places = (following != IGNORED).float().topk(min(most, len(following)), sorted=False).indices
        logits = head(hidden.flatten(0, 1)[places]).float()
        # Trainer counts the labels where several batches make a step: each token weighs the same, as in the model's own loss.
        how = "mean" if num_items_in_batch is None else "sum"
        loss = functional.cross_entropy(logits, following[places], ignore_index=IGNORED, reduction=how)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}

    network.forward = forward


def has_bf16(on_gpu: bool) -> bool:
    """Whether bf16 is computed by hardware; emulated it is slower than float32."""
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def batches(arguments: TrainingArguments) -> dict[str, int]:
    """Rows that one process takes at a time."""
    return {"train": arguments.train_batch_size, "eval": arguments.eval_batch_size}


def check_rows(name: str, rows: dict[str, PackedRows], arguments: TrainingArguments) -> None:
    """Says what was packed; fails where it makes no batch."""
    for kind, packed in rows.items():
        batch = batches(arguments)[kind] * max(1, arguments.world_size)
        if len(packed) < batch:
            raise SystemExit(f"{name}: {len(packed)} rows of {kind} samples make no batch of {batch}; render more samples")
        filled = packed.tokens / packed.input_ids.numel()
        if arguments.process_index == 0:
            print(f"{name}: {kind}: {len(packed):,} rows, {filled:.1%} filled, {packed.left_out} samples too long", flush=True)


def last_complete(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; the state is written last."""
    found = sort_checkpoints(str(checkpoints)) if checkpoints.is_dir() else []
    for checkpoint in reversed(found):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text())
            return checkpoint
        except (OSError, ValueError):
            continue  # several processes come by here; the limit on checkpoints deletes it in time
    return None


def copy_all_but_weights(source: Path, target: Path) -> None:
    """Tokenizer, template and layout, with the model's configs as the source has them."""
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copy2(file, target)
    (target / "training_args.bin").unlink(missing_ok=True)


class Progress(TrainerCallback):
    """One line per log: step, loss, speed, minutes left. Speed counts no padding, and neither evaluations nor the first step, which
    compiles."""

    def __init__(self, name: str, rows: PackedRows, arguments: TrainingArguments):
        self.name = name
        rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        self.tokens_per_step = rows.tokens / len(rows) * rows_per_step
        self.steps = -1
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, **_):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        if self.steps:
            self.seconds += time.monotonic() - self.began

    def speed(self) -> float | None:
        """Tokens per second."""
        return self.steps * self.tokens_per_step / self.seconds if self.seconds else None

    def on_log(self, args, state, control, logs, **_):
        if not state.is_world_process_zero or not ("loss" in logs or "eval_loss" in logs):
            return
        line = f"{self.name} {state.global_step}/{state.max_steps}"
        line += f"  loss {logs['loss']:.3f}" if "loss" in logs else f"  held out {logs['eval_loss']:.3f}"
        if speed := self.speed():
            left = (state.max_steps - state.global_step) * self.tokens_per_step / speed / 60
            line += f"  {speed:,.0f} tokens/s  {left:.1f} min left"
        print(line, flush=True)


if __name__ == "__main__":
    main()
