#!/usr/bin/env python3
"""From a catalog to a model that names its items: every step, in order.

    python training/recipe.py --out DIR

Each step leaves its result in DIR/build/STEP. Started again, the recipe takes what is there and goes on; a step is made anew when
its settings, or those of a step before it, have changed.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def main() -> None:
    options = arguments()
    settings = tomllib.loads(options.config.read_text())
    smoke = settings.pop("smoke")
    if options.smoke:
        settings = overlaid(settings, smoke)
    Recipe(options, settings).run()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a small model and few steps: about a minute")
    parser.add_argument("--pretrained", type=Path, help="start from this model folder: no tokenizer, no warm-up")
    parser.add_argument("--catalog", type=Path, default=HERE / "catalog", help="folder with TYPE.jsonl of each type")
    parser.add_argument("--config", type=Path, default=HERE / "demo.toml")
    parser.add_argument("--sidereal", default="sidereal", help="the program, or a command that runs it")
    parser.add_argument("--launch", default=sys.executable, help='runs train.py, e.g. "torchrun --nproc-per-node 8"')
    parser.add_argument("--again", metavar="STEP", help="make this step and what follows anew")
    return parser.parse_args()


def overlaid(settings: dict, changes: dict) -> dict:
    """`settings` with `changes`, table by table."""
    nested = {key: overlaid(settings[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return settings | changes | nested


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class Recipe:
    """The steps. A method that makes one takes the folder it fills."""

    def __init__(self, options: argparse.Namespace, settings: dict):
        self.options = options
        self.settings = settings
        self.build = options.out / "build"
        self.stamp = ""
        self.remade = False

    def run(self) -> None:
        steps = ["vectors", "sids", "histories", "grounded", "export"]
        steps += [] if self.options.pretrained else ["corpus", "untrained"]
        steps += [name for stage in self.stages() for name in (f"{stage}_samples", stage)]
        if self.options.again not in (None, *steps):
            raise SystemExit(f"--again {self.options.again}: expected one of {', '.join(steps)}")
        s, sources = self.settings, self.sources()
        self.vectors = self.step("vectors", [s["vectors"], [path.read_text() for path in sources.values()]], self.make_vectors)
        self.sids = self.step("sids", s["sids"], self.make_sids)
        self.histories = self.step("histories", s["histories"], self.make_histories)
        if self.options.pretrained:
            model = self.options.pretrained
        else:
            self.corpus = self.step("corpus", s["corpus"], self.make_corpus)
            model = self.step("untrained", [s["tokenizer"], s["model"], s["sampling"]], self.make_untrained)
            model = self.train("warm_up", model, ["--items", "titles"], answer_only=False)
        grounded = self.step("grounded", [s["sids"]["init"], str(self.options.pretrained)], lambda out: self.make_grounded(model, out))
        aligned = self.train("align", grounded / "model", [], new_tokens_of=model)
        instructed = self.train("instruct", aligned, [])
        self.step("export", s["export"], lambda out: self.make_export(instructed, out))
        for file in sorted((self.build / "export").iterdir()):
            if file.name != "stamp":
                shutil.copy2(file, self.options.out)
        print(f"done: {self.options.out}", flush=True)

    def step(self, name: str, settings: object, make: Callable[[Path], None], resumes: bool = False) -> Path:
        """The folder of a step, which is made unless it is there.

        The stamp covers the settings of this step and all before it. A folder is filled under another name and renamed when
        complete; what a killed step left is thrown away, unless the step `resumes`.
        """
        content = json.dumps([self.stamp, name, self.options.seed, settings], sort_keys=True)
        self.stamp = hashlib.sha256(content.encode()).hexdigest()
        self.remade |= name == self.options.again
        folder, part = self.build / name, self.build / f"{name}.part"
        if not self.remade and stamp_of(folder) == self.stamp:
            print(f"{name}: there", flush=True)
            return folder
        print(f"{name}: ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        if not resumes or self.remade or stamp_of(part) != self.stamp:
            shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, exist_ok=True)
        (part / "stamp").write_text(self.stamp)
        make(part)
        part.rename(folder)
        return folder

    def sidereal(self, *arguments: object, **run) -> subprocess.CompletedProcess:
        return subprocess.run([*shlex.split(self.options.sidereal), *map(str, arguments)], check=True, text=True, **run)

    def sources(self) -> dict[str, Path]:
        return {name: self.options.catalog / f"{name}.jsonl" for name in self.settings["types"]}

    def make_vectors(self, out: Path) -> None:
        import numpy as np

        from vectors import vectors

        for name, path in self.sources().items():
            np.save(out / f"{name}.npy", vectors(read_jsonl(path), self.settings["vectors"]))

    def make_sids(self, out: Path) -> None:
        """Codebooks, the layout of their tokens, and the catalog with SIDs."""
        import numpy as np

        files = [f"{name}={self.vectors / name}.npy" for name in self.settings["types"]]
        levels = ",".join(map(str, self.settings["sids"]["levels"]))
        report = self.sidereal(
            "sid", "fit", *files, "--levels", levels, "--unique", "--seed", self.options.seed,
            "--out", out / "codebooks.safetensors", "--codes", out / "{type}.npy", "--json", stdout=subprocess.PIPE,
        )  # fmt: skip
        types = []
        for fitted in json.loads(report.stdout)["types"]:
            name, sizes = fitted["name"], [level["codes"] for level in fitted["levels"]]
            types.append({"name": name, "levels": sizes, "token": f"<{name}_{{level}}_{{code}}>"})
        layout = {"open": "<|sid_begin|>", "close": "<|sid_end|>", "types": types}
        (out / "layout.json").write_text(json.dumps(layout, indent=1))
        catalog = []
        for name, path in self.sources().items():
            codes = np.load(out / f"{name}.npy").tolist()
            catalog += [item | {"sid": sid} for item, sid in zip(read_jsonl(path), codes, strict=True)]
        write_jsonl(out / "catalog.jsonl", catalog)

    def make_histories(self, out: Path) -> None:
        """Histories of simulated users, and the catalog with how often each item occurs in those to train on."""
        self.sidereal(
            "dataset", "simulate", "--catalog", self.sids / "catalog.jsonl", "--users", self.settings["histories"]["users"],
            "--held-out", self.settings["histories"]["held_out"], "--seed", self.options.seed, "--out", out / "histories.jsonl",
        )  # fmt: skip
        users = read_jsonl(out / "histories.jsonl")
        counts = Counter(item for user in users if user["split"] == "train" for item in user["items"])
        catalog = [item | {"popularity": counts[item["id"]]} for item in read_jsonl(self.sids / "catalog.jsonl")]
        write_jsonl(out / "catalog.jsonl", catalog)

    def render(self, samples: int, mix: str, split: str, how: list[object], out: Path) -> None:
        self.sidereal(
            "dataset", "render", "--catalog", self.histories / "catalog.jsonl", "--histories", self.histories / "histories.jsonl",
            *how, "--mix", mix, "--samples", samples, "--split", split, "--seed", self.options.seed, "--out", out,
        )  # fmt: skip

    def make_corpus(self, out: Path) -> None:
        wanted = self.settings["corpus"]
        self.render(wanted["samples"], wanted["mix"], "train", ["--as", "text"], out / "corpus.jsonl")

    def make_untrained(self, out: Path) -> None:
        from tokenizer import train_tokenizer, write_untrained

        samples = read_jsonl(self.corpus / "corpus.jsonl")
        texts = (text for s in samples for text in (f"user\n{s['prompt']}", f"assistant\n{s['answer']}"))
        tokenizer = train_tokenizer(texts, self.settings["tokenizer"]["vocab_size"])
        write_untrained(tokenizer, self.settings["model"], self.settings["sampling"], self.options.seed, out)

    def make_grounded(self, model: Path, out: Path) -> None:
        """The model with rows for the tokens of the layout."""
        init = self.settings["sids"]["init"]
        codebooks = ["--codebooks", self.sids / "codebooks.safetensors"] if init == "centroids" else []
        self.sidereal(
            "sid", "extend", "--model", model, "--layout", self.sids / "layout.json", "--init", init, *codebooks,
            "--seed", self.options.seed, "--out", out / "model",
        )  # fmt: skip

    def train(self, stage: str, model: Path, how: list[object], answer_only: bool = True, new_tokens_of: Path | None = None) -> Path:
        """The model after a stage: samples of it, then training."""
        wanted = self.settings[stage]
        splits = {"train": wanted["samples"], "test": wanted["eval_samples"]}

        def make_samples(out: Path) -> None:
            for split, samples in splits.items():
                self.render(samples, wanted["mix"], split, ["--model", model, *how], out / f"{split}.jsonl")

        samples = self.step(f"{stage}_samples", [splits, wanted["mix"], how], make_samples)
        settings = {
            "name": stage,
            "seed": self.options.seed,
            "length": self.settings["rows"]["length"],
            "answer_only": answer_only,
            "new_tokens_of": new_tokens_of and str(new_tokens_of),
            "trainer": self.settings["trainer"] | wanted["trainer"],
        }

        def make(out: Path) -> None:
            (out / "settings.json").write_text(json.dumps(settings, indent=1))
            files = {"model": model, "train": samples / "train.jsonl", "eval": samples / "test.jsonl"}
            files |= {"settings": out / "settings.json", "out": out}
            command = [*shlex.split(self.options.launch), str(HERE / "train.py")]
            subprocess.run(command + [word for name, path in files.items() for word in (f"--{name}", str(path))], check=True)

        # A path in the stamp would have a moved folder made anew.
        return self.step(stage, settings | {"new_tokens_of": bool(new_tokens_of)}, make, resumes=True) / "model"

    def make_export(self, model: Path, out: Path) -> None:
        """The folder as it is served: bf16, with catalog and learning curve."""
        import torch
        from transformers import AutoModelForCausalLM, logging

        from curve import write_curve

        logging.disable_progress_bar()
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(out)
        for file in model.iterdir():
            if file.suffix in (".json", ".jinja") and file.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copy2(file, out)
        shutil.copy2(self.histories / "catalog.jsonl", out)
        write_curve([self.build / stage / "curve.json" for stage in self.stages()], out)
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        most = self.settings["export"]["max_bytes"]
        print(f"export: {size:,} bytes of weights", flush=True)
        if not self.options.pretrained and size > most:
            raise SystemExit(f"export: {size:,} bytes of weights, expected at most {most:,}")

    def stages(self) -> list[str]:
        return ["align", "instruct"] if self.options.pretrained else ["warm_up", "align", "instruct"]


def stamp_of(folder: Path) -> str | None:
    file = folder / "stamp"
    return file.read_text() if file.is_file() else None


if __name__ == "__main__":
    main()
