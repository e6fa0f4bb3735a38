"""BD-KD: peers that learn together, the student by forward and reverse divergences in balance (arXiv 2212.12965)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.nets import ConvNet, Net
from attar.run import SGD, Learner, Run
from attar.run.optimizers import Optimizer
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher

_SMALL: Any = Objective.presets["small"]


@method
class BalancedDivergence(Objective):
    """Train a student and larger peers together, with KL(p_t ‖ p_s) and KL(p_s ‖ p_t) weighed by who is surer.

    Student: hard · CE + weight · T² mean_i [a_i KL(p_t ‖ p_s) + b_i KL(p_s ‖ p_t)], averaged over peers, with (a, b) =
    (δ, 1) where the student's entropy is below the peer's, and (1, δ) elsewhere. A peer: CE + peer_weight · T²
    KL(p_s ‖ p_t). Each takes the other's probabilities as given. All start from random weights; there is no teacher to
    be trained before. Amara et al. 2022, arXiv 2212.12965; δ's side and T are unconfirmed.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            **_SMALL,
            "peers": [{"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"}],
            "peer_optimizer": {"lr": 0.05},
        }
    }

    peers: tuple[Net, ...] = Field((ConvNet(depth=3, width=128, norm="batch"),), min_length=1)  # trained beside it
    peer_optimizer: Optimizer = SGD(lr=0.05, momentum=0.9, weight_decay=5e-4)  # on the student's schedule
    peer_weight: float = Field(1.0, ge=0)  # of what a peer learns from the student; its labels have weight 1
    temperature: float = Field(4.0, gt=0)  # unconfirmed: 1 to 4
    emphasis: float = Field(2.0, gt=0)  # δ; 1 is the plain sum
    swapped: bool = False  # emphasise the reverse divergence where the student is the surer one
    form: Literal["balanced", "sum", "forward", "reverse"] = "balanced"  # sum: half of both; forward: mutual learning

    def build(self, setting: Setting) -> nn.Module:
        """Make the peers, each with a learner of its own."""
        state: Any = nn.Module()
        state.learners, steps = [], self.train.total(len(setting.data))
        for number, net in enumerate(self.peers):
            peer = nets.fresh(net, setting.data, setting.run.rng("peer", number), device=setting.run.device)
            learner = setting.run.learner(
                f"peer {number + 1}", peer, self.peer_optimizer, schedule=self.train, steps=steps, clip=self.train.clip
            )
            state.learners.append(learner)
        return state

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the peers' learners."""
        return list(state.learners)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield what the student learns from its peers, and what each peer learns."""
        for number, learner in enumerate(state.learners):
            told = student.by(learner.module.train()).logits
            yield Term("balanced", self.divergence(student.logits, told.detach()), 1 / len(self.peers))
            own = nn.functional.cross_entropy(told, batch.labels)
            mutual = losses.kl_divergence(told, student.logits.detach(), self.temperature)
            # `weight` multiplies every term, and is not meant for the peers
            yield Term(f"peer {number + 1}", own + self.peer_weight * mutual, 1 / self.weight if self.weight else 0.0)

    def divergence(self, student: Tensor, told: Tensor) -> Tensor:
        """Return what the student minimises besides the labels, from logits `[n, classes]`."""
        if self.form == "balanced":
            return losses.balanced_kl(student, told, self.temperature, emphasis=self.emphasis, swapped=self.swapped)
        forms = {"sum": losses.symmetric_kl, "forward": losses.kl_divergence, "reverse": losses.reverse_kl}
        return forms[self.form](student, told, self.temperature)

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train all together and return the student.

        Raises:
            RecipeError: a teacher is given.
        """
        if teacher is not None and (teacher.members or teacher.labels):
            raise RecipeError("bd-kd trains its peers beside the student; name them as peers=… instead of a teacher")
        return super().__call__(run, data=data, teacher=Teacher(()))
