"""Self-distillation: generations of one network, each taught by the last and by labels in proportion (2102.13088).

The closed form for kernel ridge regression, of which this is the estimate, is in `attar.losses.self_distillation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import nets
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.losses.self_distillation import best_share
from attar.nets import Net, ResNet18
from attar.run import Adam, Constant, Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, StudentTraining, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher
from attar.train.training import predict

_SMALL: Any = Objective.presets["small"]
Share = Annotated[float, Field(ge=0, le=1)]
HELD_OUT = 1 / 6  # of each class, where no validation images are given


@method
class SelfDistillation(Objective):
    """Train generations of one network, each on α of the labels and 1 − α of the last generation's probabilities.

    L = α · mse(σ(z), one-hot) + (1 − α) · mse(σ(z), σ(z_last)) + norm_penalty · Σ ‖parameter‖. Every generation starts
    from new weights; the first has α = 1. With `share="best"` a generation is trained with α = 0 besides, and α is the
    one under which its mixture with the first comes nearest to the labels of validation images: two trainings instead
    of a grid. There is no teacher. Borup & Andersen 2021, arXiv 2102.13088.
    """

    version: ClassVar = 2
    presets: ClassVar = {
        "small": {
            **_SMALL,
            "student": {"kind": "convnet", **_SMALL["student"]},
            "train": {**_SMALL["train"], "steps": 400, "batch": 64, "optimizer": {"lr": 3e-3}},
            "generations": 2,
        }
    }

    student: Net = ResNet18(norm="batch")
    train: StudentTraining = StudentTraining(
        epochs=75, batch=16, augment="none", optimizer=Adam(lr=1e-4), schedule=Constant()
    )
    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels; here the share says how they count
    generations: int = Field(5, ge=1)  # the paper's steps
    share: Share | Literal["best"] = "best"  # α, of the ground truth; 0 forgets the labels, 1 the generations
    norm_penalty: float = Field(1e-4, ge=0)  # of the sum of the parameters' norms, not squared, as released

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distances to labels and last generation, and the penalty."""
        assert not isinstance(self.share, str)  # `__call__` replaces it
        probabilities = student.logits.softmax(1)
        if self.share:
            truth = nn.functional.one_hot(batch.labels, probabilities.shape[1]).to(probabilities.dtype)
            yield Term("truth", nn.functional.mse_loss(probabilities, truth), self.share)
        if self.share < 1:
            told = teacher.logits.softmax(1)
            yield Term("generation", nn.functional.mse_loss(probabilities, told), 1 - self.share)
        if self.norm_penalty:
            lengths = torch.stack([parameter.norm() for parameter in student.module.parameters()])
            yield Term("norm", lengths.sum(), self.norm_penalty)

    def __call__(
        self, run: Run, *, data: Images, teacher: Teacher | None = None, validation: Images | None = None
    ) -> Student:
        """Train the generations and return the last; a `teacher` is taken for the first, which is then not trained.

        Raises:
            RecipeError: the teacher is stored labels.
        """
        if teacher is not None and teacher.labels is not None:
            raise RecipeError("stored labels are no first generation; name a network, or leave the teacher out")
        chosen = self.share == "best" and self.generations > 1
        if chosen and validation is None:
            data, validation = data.split(HELD_OUT, 0)
        module = self._first(run, data, teacher)
        on_labels = module
        for number in range(2, self.generations + 1):
            share = 1.0 if self.share == "best" else self.share
            if chosen and validation is not None:
                alone = self._generation(run, data, f"generation {number} without labels", module, 0.0)
                share = estimated_share(validation, on_labels, alone)
                run.log({f"share of generation {number}": share})
            module = self._generation(run, data, f"generation {number}", module, share)
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def _first(self, run: Run, data: Images, teacher: Teacher | None) -> nn.Module:
        if teacher is None or not teacher.members:
            return self._generation(run, data, "generation 1", None, 1.0)
        return teacher.ready(run, data, self.teaching)

    def _generation(self, run: Run, data: Images, name: str, last: nn.Module | None, share: float) -> nn.Module:
        """Train one generation from new weights."""
        module = nets.fresh(self.student, data, run.rng(name), device=run.device)
        dataclasses.replace(self, share=share).teach(run, module, data, last, loop=name)
        return module


def estimated_share(validation: Images, on_labels: nn.Module, on_predictions: nn.Module) -> float:
    """Return the share of the labels under which the mixture of both networks comes nearest to those of `validation`.

    The networks are one trained on labels, and one on the last generation's predictions.
    """
    truth = nn.functional.one_hot(validation.labels, validation.num_classes)
    told: list[Tensor] = [predict(module, validation).softmax(1).cpu() for module in (on_labels, on_predictions)]
    return best_share(truth.cpu(), *told)
