"""What several tests share. $SIDEREAL names the program; without it tests that need it are skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices; and sums in one order
FAKE = f"{sys.executable} {TESTS / 'fake_sidereal.py'}"
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@pytest.fixture(scope="session")
def sidereal() -> str:
    """The program."""
    if "SIDEREAL" not in os.environ:
        pytest.skip("$SIDEREAL names no program")
    return os.environ["SIDEREAL"]


@pytest.fixture(scope="session")
def sidereal_dataset(sidereal) -> str:
    """The program, where it makes data sets."""
    if subprocess.run([sidereal, "dataset", "--help"], capture_output=True).returncode:
        pytest.skip("this sidereal has no `dataset`")
    return sidereal


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """An untrained model that knows the words of two sentences."""
    from tokenizer import train_tokenizer, write_untrained

    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = train_tokenizer(["Find the film by Akira Kurosawa of 1950.", "A Belgian refugee works out who it was."] * 9, 300)
    write_untrained(tokenizer, SHAPE, {"temperature": 0.5}, 5, folder)
    return folder


def write_samples(path: Path, samples: list[tuple[list[int], list[int]]]) -> Path:
    lines = [json.dumps({"task": "find", "prompt_token_ids": prompt, "answer_token_ids": answer}) for prompt, answer in samples]
    path.write_text("\n".join(lines) + "\n")
    return path
