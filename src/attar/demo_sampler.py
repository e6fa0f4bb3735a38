"""`make demo-sampler`: a teacher of emoji by their names, a student that draws in a step or two, a page with both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

OUT = Path("runs/demo-sampler")
DATA = "emoji?size=32"
PROMPTS = ("red apple", "green apple", "sun", "red heart", "dog face", "pizza", "soccer ball", "full moon")
SAMPLES = 300  # of an arm that distances are measured on
# An MLP on all pixels takes a small part of a U-Net's time. It predicts clean pictures: these have far fewer dimensions
# than noise has, and go through a layer that is narrower than a picture. What holds such a student to x at no noise is
# LCM's boundary, which counts the steps of this process.
TEACHER: dict[str, Any] = {
    "net": "residual-mlp",
    "net.width": 512,
    "net.blocks": 3,
    "process": "vp",
    "prediction": "x0",
    "train.steps": 6000,
    "train.batch": 64,
    "train.schedule": "cosine",
    "guidance": 2.0,
}
STUDENT: dict[str, Any] = {
    "boundary": "lcm",
    "guidance.scale": 2.0,
    "pairs.intervals": 32,
    "train.steps": 2000,
    "train.batch": 64,
    "train.optimizer.lr": 3e-4,
}


def main(arguments: list[str] | None = None) -> None:
    """Train teacher and student, or report them where they have finished before; print a table and the page's path."""
    from attar import api, files, terminal
    from attar.errors import AttarError, Interrupted

    parser = argparse.ArgumentParser(prog="attar.demo_sampler", description=__doc__)
    parser.add_argument("--data", default=DATA, help="pictures with captions or classes")
    parser.add_argument("--out", type=Path, default=OUT, help="a folder for both runs")
    given = parser.parse_args(arguments)
    prompts = PROMPTS if given.data == DATA else ()
    try:
        teacher = api.run_result("diffusion", data=given.data, out=given.out / "teacher", **TEACHER)
        student = api.run_result(
            "consistency", data=given.data, teacher=str(teacher.folder), out=given.out / "student", **STUDENT
        )
        judged = student.folder / "evaluation.json"
        outcome = (
            files.read_object(judged)
            if judged.exists()
            else api.evaluate(student.folder, samples=SAMPLES, prompts=prompts)
        )
    except (AttarError, Interrupted) as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    terminal.show_arms(outcome)
    print(f"\npage: {(student.folder / 'report.html').resolve()}")
    if prompts:
        print(f'draw: attar sample {student.folder} "red apple" --n 8 --steps 2')


if __name__ == "__main__":
    main()
