"""The learning curve of all stages, as JSON and as a picture."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)


def write_curve(files: list[Path], out: Path) -> None:
    """Writes learning_curve.json and learning_curve.svg: loss and held-out loss of each stage by its steps."""
    stages = [json.loads(file.read_text()) for file in files]
    (out / "learning_curve.json").write_text(json.dumps(stages, indent=1))
    figure, panels = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3), layout="constrained", squeeze=False)
    for panel, stage in zip(panels[0], stages):
        for key, label in (("loss", "training"), ("eval_loss", "held out")):
            points = [(entry["step"], entry[key]) for entry in stage["log"] if key in entry]
            panel.plot(*zip(*points), label=label)
        panel.set(title=stage["stage"], xlabel="step", ylabel="loss per token")
        panel.legend()
    figure.savefig(out / "learning_curve.svg", metadata={"Date": None})
    plt.close(figure)
