"""ScaleKD: a student's maps, asked for by a teacher's places and shown to the teacher's own end (arXiv 2411.06786)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from attar import losses
from attar.errors import RecipeError
from attar.losses.numerics import lengths, paired
from attar.methods.model.cross_attention import ConvolutionProjector, CrossAttentionProjector
from attar.run import SGD, Drop
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.tail import Tail, cut
from attar.train.taps import Seen

View = Literal["direct", "alternative"]

_SMALL: Any = Objective.presets["small"]
_PLACES = 49  # of the paper's last map, 7×7: its weights belong to a sum over so many
_LEAST = 0.01  # of a map's mean length at its places: shorter vectors count as that long
_STAGES = 4  # of which a student's third and fourth are read


@method
class ScaleKD(Objective):
    """Learn a transformer's last map, and what its last blocks make of the student's (Fan et al. 2024, 2411.06786).

    L = hard · CE + kd · T² · KL(σ(z_t / T) ‖ σ(z_s / T)) + Σ_views [a · d(tail(P(F_3)), F_t) + b · d(Q(F_4), F_t)].
    P and Q are projectors by cross-attention, one a view, from the student's maps F_3 and F_4 to the teacher's places.
    d is the squared distance of maps that have length 1 at every place: the maps as they are (direct), and without
    their channels' means over the places (alternative), which is the cosine transform's first coefficient set to zero.
    The tail is the teacher's own, frozen; gradients pass through it to the student. Q asks with what the tail gave.
    Projectors do not remain. The paper sums d over its 7×7 places; here it is a mean over places, times 49.
    By default the weights are those of the authors' advanced recipe, and the training is their traditional one's, whose
    weights are `preset=traditional`.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            **_SMALL,
            "heads": (4, 4),
            "sharpness": 1.0,
            "train": {**_SMALL["train"], "batch": 64, "optimizer": {"lr": 0.05}},
        },
        "traditional": {"hard": 1.0, "kd": 0.0, "alternative": (0.06, 0.0)},  # of the 100 epochs of ResNets
    }

    train: StudentTraining = StudentTraining(  # the traditional recipe's; the advanced one's is 300 epochs of LAMB
        epochs=100,
        batch=256,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Drop(at=(0.3, 0.6, 0.9), by=0.1),
    )
    hard: float = Field(0.5, ge=0)  # weight of the cross-entropy with the labels; 1 without kd
    kd: float = Field(0.5, ge=0)  # weight of the logits
    temperature: float = Field(1.0, gt=0)  # of the logits
    direct: tuple[NonNegativeFloat, NonNegativeFloat] = (0.08, 0.08)  # of the direct view: a and b
    alternative: tuple[NonNegativeFloat, NonNegativeFloat] = (0.06, 0.06)  # of the other view; 0 leaves a projector out
    tail: str = ""  # first block of the teacher's tail (stage:-1, vit.layers.10); none: the last, the last 2 of 24 …
    places: tuple[str, str] | None = None  # the student's, for the tail and its end; none: the last two of four stages
    projector: Literal["attention", "convolution"] = "attention"  # convolution: the control, 1×1 and pooled to the grid
    queries: Literal["perceived", "learned"] = "perceived"  # what Q asks with; learned: queries of its own, as P's
    heads: tuple[PositiveInt, PositiveInt] = (16, 24)  # of the attention at the two places, as for a Swin-L
    sharpness: float = Field(5.0, gt=0)  # factor of the attention's logits; 0.2 for a plain ViT (BEiT-L), and calmer

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the student's two places and the teacher's last block.

        Raises:
            RecipeError: stored labels teach, or a network has no stages.
        """
        if teacher is None:
            raise RecipeError("scalekd shows maps to the teacher itself, which stored labels are not; name the teacher")
        return self.places or last_two(student), [cut(teacher, self.tail)[2]]

    def build(self, setting: Setting) -> nn.Module:
        """Cut off the teacher's tail and make a projector for each view and place that has a weight."""
        assert setting.teacher is not None  # `taps` asks for it
        mine, _ = self.taps(setting.student, setting.teacher)
        two = setting.data.normalised(torch.arange(2)).to(setting.run.device)
        state: Any = nn.Module()
        state.tail = Tail(setting.teacher, self.tail, two)  # no module: its weights are the teacher's
        ours = [setting.student_shapes[path] for path in mine]
        state.ahead, state.end = nn.ModuleDict(), nn.ModuleDict()
        for view, (ahead, end) in self.weights().items():
            if ahead:
                state.ahead[view] = self._projector(ours[0], state.tail.entry, self.heads[0])
            if end:
                learned = self.queries == "learned" or not ahead
                state.end[view] = self._projector(ours[1], state.tail.exit, self.heads[1], learned=learned)
        made: nn.Module = state
        return made

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield both views of both places, and the logits' divergence."""
        wanted = state.tail.finish(teacher.at(teacher.paths[0]))
        for view, (ahead, end) in self.weights().items():
            perceived: Tensor | None = None
            if ahead:
                perceived = state.tail(state.ahead[view](student.at(student.paths[0])))
                yield Term(f"{view}, perceived", distance(perceived, wanted, view), ahead)
            if end:
                asked = perceived if self.queries == "perceived" else None
                yield Term(view, distance(state.end[view](student.at(student.paths[1]), asked), wanted, view), end)
        if self.kd:
            yield Term("kd", losses.kl_divergence(student.logits, teacher.logits, self.temperature), self.kd)

    def weights(self) -> dict[View, tuple[float, float]]:
        """Return the weights of each view, through the tail and at its end."""
        return dict(zip(get_args(View), (self.direct, self.alternative), strict=True))

    def _projector(self, student: torch.Size, teacher: torch.Size, heads: int, *, learned: bool = True) -> nn.Module:
        if self.projector == "convolution":
            return ConvolutionProjector(student, teacher)
        return CrossAttentionProjector(student, teacher, heads=heads, sharpness=self.sharpness, learned=learned)


def distance(student: Tensor, teacher: Tensor, view: View) -> Tensor:
    """Return ‖n(s) − n(t)‖² of maps `[n, C, h, w]`, n(x) of length 1 at every place: a mean over places, times 49.

    The alternative view is of maps without their channels' means over the places: they say how a place differs from
    the others, which the strong mean hides. Of places that hardly differ it would see rounding, a million times
    enlarged, and so would the gradient: lengths below a hundredth of the map's own count as that much.
    """
    seen = []
    for maps in paired(student, teacher, "maps", (4,)):
        places = maps.flatten(2)
        least = (_LEAST * lengths(places.detach(), 1).mean()).clamp_min(1e-6)
        places = places - places.mean(2, keepdim=True) if view == "alternative" else places
        seen.append(places / lengths(places, 1).clamp_min(least))
    return _PLACES * (seen[0] - seen[1]).square().sum(1).mean()


def last_two(student: nn.Module) -> tuple[str, str]:
    """Return the places of the last two of four evenly spaced stages; of fewer, of the last two; of one, that twice.

    Raises:
        RecipeError: the network has no stages.
    """
    blocks = len(getattr(student, "stages", ()))
    if not blocks:
        raise RecipeError(f"{type(student).__name__} has no stages; name two of its places with places=[FIRST,SECOND]")
    count = min(_STAGES, blocks)
    return f"stage:{math.ceil(blocks * max(count - 1, 1) / count) - 1}", f"stage:{blocks - 1}"
