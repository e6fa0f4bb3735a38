"""Talking models: teacher and student exchange messages while the student learns its task (arXiv 2310.03188).

A reconstruction: no code is public, and only the abstract's statements are confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.methods.model.tops import Top
from attar.run import AdamW, Learner
from attar.run.optimizers import Optimizer
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import EMBEDDING, Seen, place


@method
class TalkingModels(Objective):
    """Let a student ask its teacher for several rounds, in messages that both can read (reconstructed, 2310.03188).

    A network's state h is what its last linear layer reads. E takes a state to a message of `message` numbers, D takes
    a message to what the network's top stages read, and the top goes on from there. A round: m = E_S(h_S), the teacher
    replies E_T(top_T(D_T(m))), and the student's next state is top_S(D_S(reply)). Terms: cross-entropy of what the
    student says after the teacher's own message and after the last round (task); ‖top(D(E(h))) − h‖² of both
    (consistency); ‖E_S(h_S) − E_T(h_T)‖² (alignment); ‖h_S − h after the last round‖² (transfer), which brings the
    gain into the student that remains alone. The teacher may have other classes: its features alone are read.
    """

    version: ClassVar = 2
    foreign: ClassVar = True

    rounds: int = Field(1, ge=0)  # of question and reply; 0: the teacher's own message alone
    message: int | None = Field(None, ge=1)  # numbers of a message; none: the smaller state's
    hidden: int = Field(256, ge=1)  # units between, in encoders and decoders
    top: int = Field(1, ge=0)  # last stages, or blocks, that go on from a message; 0: the linear layer alone
    task: float = Field(1.0, ge=0)  # weight of the cross-entropies after messages; of 0.1 to 1, as the next three
    consistency: float = Field(1.0, ge=0)
    alignment: float = Field(1.0, ge=0)
    transfer: float = Field(1.0, ge=0)
    warmup_share: float = Field(
        0.1, ge=0, le=1
    )  # of the epochs, in which task and transfer grow: replies start as noise
    talk_optimizer: Optimizer = AdamW(lr=1e-3)  # of encoders and decoders
    form: Literal["messages", "hint"] = "messages"  # hint: the control, the same modules map h_S to h_T and no more

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the states."""
        return [EMBEDDING], [EMBEDDING]

    def build(self, setting: Setting) -> nn.Module:
        """Make encoders and decoders, with an optimizer of their own."""
        assert setting.teacher is not None  # `taps` asks for its state
        two = setting.data.normalised(torch.arange(2)).to(setting.run.device)
        sizes = [setting.student_shapes[EMBEDDING][0], setting.teacher_shapes[EMBEDDING][0]]
        speakers = [
            Speaker(module, self.top, two, size=size, message=self.message or min(sizes), hidden=self.hidden)
            for module, size in zip((setting.student, setting.teacher), sizes, strict=True)
        ]
        state: Any = nn.Module()
        state.speakers = speakers  # a list: their learner is another than the student's
        talk = nn.ModuleList(speakers).to(setting.run.device)
        state.talk = [setting.run.learner("messages", talk, self.talk_optimizer)]
        return state

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the learner of encoders and decoders."""
        return list(state.talk)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield what is said after messages, and what keeps messages meaningful."""
        mine, theirs = state.speakers
        h_s, h_t = student.embedding, teacher.embedding.detach()
        if self.form == "hint":
            yield Term("hint", losses.hint_distance(theirs.hear(mine.encode(h_s)), h_t), self.transfer)
            return
        own = theirs.encode(h_t)
        heard = [mine.hear(own)]
        if self.rounds:
            heard.append(h_s)
        for _ in range(self.rounds):
            reply = theirs.encode(theirs.hear(mine.encode(heard[-1])))
            heard[-1] = mine.hear(reply)
        ramp = progress.ramp(self.warmup_share)
        said = [losses.cross_entropy(mine.answer(state_after), batch.labels) for state_after in heard]
        yield Term("task", sum(said[1:], said[0]), self.task * ramp)
        both = [
            losses.hint_distance(speaker.hear(speaker.encode(h)), h.detach())
            for speaker, h in ((mine, h_s), (theirs, h_t))
        ]
        yield Term("consistency", both[0] + both[1], self.consistency)
        yield Term("alignment", losses.hint_distance(mine.encode(h_s), own.detach()), self.alignment)
        yield Term("transfer", losses.hint_distance(h_s, heard[-1].detach()), self.transfer * ramp)


class Speaker(nn.Module):
    """What lets a network speak and listen: an encoder of its state, and a decoder to what its top reads.

    Args:
        network: student or teacher; its parameters are not the speaker's.
        top: how many of its last stages go on from a message.
        two: images, to see what the top reads.
        size: numbers of the state.
        message: numbers of a message.
        hidden: units between.

    Raises:
        RecipeError: the network has no such stages, or they cannot go on from a message.
    """

    def __init__(self, network: nn.Module, top: int, two: Tensor, *, size: int, message: int, hidden: int) -> None:
        super().__init__()
        self._network, self._top = [network], Top(network, top, two)
        self.entry = self._top.entry
        self.encode = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, message))
        self.decode = nn.Sequential(nn.Linear(message, hidden), nn.ReLU(), nn.Linear(hidden, self.entry.numel()))

    def hear(self, message: Tensor) -> Tensor:
        """Return the network's state `[n, size]` after a message `[n, message]`; gradients pass."""
        return self._top(self.decode(message).unflatten(1, self.entry))

    def consistency(self, state: Tensor) -> Tensor:
        """Return the mean squared distance of a state and the state after its own message."""
        return losses.hint_distance(self.hear(self.encode(state)), state.detach())

    def answer(self, state: Tensor) -> Tensor:
        """Return the network's logits for a state."""
        logits: Tensor = place(self._network[0], EMBEDDING)[0](state)
        return logits
