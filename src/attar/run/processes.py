"""What several processes that work on one run do together; on one process, nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from attar.errors import AttarError, Interrupted
from attar.progress import tell

T = TypeVar("T")


def join(device: str = "cpu") -> None:
    """Join the group that `torchrun` or `accelerate launch` made, if one did and it was not joined before."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
        atexit.register(_leave)


def _leave() -> None:
    """Leave the group together: its threads abort the interpreter when a group is left open, or left while in use."""
    with contextlib.suppress(RuntimeError):  # another process may have ended already
        distributed.barrier()
    distributed.destroy_process_group()


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """Say plainly that another process is gone, where torch reports a broken connection.

    Raises:
        AttarError: what this process waited for will not come.
    """
    try:
        yield
    except RuntimeError as error:
        raise AttarError("another process of this run has ended; the same command goes on from there") from error


class Processes:
    """The part of a run that meets the other processes of its group.

    Convention: the loss of a run is the sum of its processes' losses. Each process computes its share, divided by
    global counts, and `Learner.step` sums the gradients; nothing else does. A run that never asked for a share
    (`shard`, `chunks`, `gather`) computes the whole in every process, and there the mean of the processes is taken.
    """

    _shares = False  # whether this run ever asked for a share of the work

    @property
    def world(self) -> int:
        """The number of processes that work on this run."""
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The number of this process."""
        return distributed.get_rank() if self.world > 1 else 0

    @property
    def beside(self) -> int:
        """The number of processes of this run on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if self.world > 1 else 1

    def first(self, function: Callable[[], T]) -> T:
        """Let the first process do something to files, and give every process what came of it.

        Raises:
            AttarError, Interrupted: what the first process raised, in every process.
        """
        if self.world == 1:
            return function()
        told: list[Any] = [None]
        if self.rank == 0:
            try:
                told = [(True, function())]
            except (AttarError, Interrupted) as error:
                told = [(False, error)]
        with _meeting():
            distributed.broadcast_object_list(told)
        went_well, outcome = told[0]
        if not went_well:
            raise outcome
        return outcome

    def tell(self, message: str) -> None:
        """Tell the person at the keyboard something that stops nothing, once and not in every process."""
        if self.rank == 0:
            tell(message)

    def everyone(self, value: T) -> list[T]:
        """Return what every process has, in the order of their ranks; what is sent lies on the CPU."""
        if self.world == 1:
            return [value]
        told: list[Any] = [None] * self.world
        with _meeting():
            distributed.all_gather_object(told, value)
        return told

    def spread(self, work: Callable[[Sequence[int]], Sequence[T]], count: int) -> list[T]:
        """Let each process do its part of `count` items, and give every process all results, in the items' order.

        Processes take turns, so that items that differ in length along the list do not pile up in one. `work` gets the
        numbers of its items and gives a result for each. No share of a loss is asked for by this.

        Raises:
            AttarError, Interrupted: what any process raised, in every process.
        """
        if self.world == 1:
            return list(work(range(count)))
        try:
            told: tuple[bool, Any] = True, work(range(count)[self.rank :: self.world])
        except (AttarError, Interrupted) as error:
            told = False, error
        results: list[Any] = [None] * count
        for rank, (went_well, outcome) in enumerate(self.everyone(told)):
            if not went_well:
                raise outcome
            results[rank :: self.world] = outcome
        return results

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of every number over processes, so that all decide alike."""
        if self.world == 1:
            return numbers
        largest = torch.tensor(numbers)
        with _meeting():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return tuple(largest.tolist())

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate `[n, …]` tensors over processes along the first dimension; identity on one process.

        Differentiable: what the losses of all processes ask of this process's part is summed, so a loss that every
        process computes over the whole is to be divided by `world`. The parts may differ in n.
        """
        self._shares = True
        if self.world == 1:
            return tensor
        with _meeting():
            return _Gather.apply(tensor, self.rank, self.world)

    def joined(self, rows: Sequence[Tensor], sums: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what all chunks gave: their rows behind one another, with gradient, and the sums of their sums.

        A loss of it is of the whole: `run.backward(loss, …, joined=True)`.
        """
        return self.gather(torch.cat(list(rows))), {name: self.sum(tensor) for name, tensor in sums.items()}

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of counts or sums over processes, without gradient; identity on one process."""
        if self.world > 1:
            tensor = tensor.detach().clone()
            with _meeting():
                distributed.all_reduce(tensor)
        return tensor

    def shard(self, count: int) -> slice:
        """Return this process's share of `count` items: the whole on one process."""
        self._shares = True
        bounds = [count * rank // self.world for rank in range(self.world + 1)]
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def sum_named(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sum losses by name over processes (their mean where none is a share); a name that one lacks is zero there."""
        if self.world == 1:
            return numbers
        parts = self.everyone(numbers)
        names = dict.fromkeys(name for part in parts for name in part)
        copies = 1 if self._shares else self.world
        return {name: sum(part.get(name, 0.0) for part in parts) / copies for name in names}

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of parameters over processes, in place; their mean where none is of a share.

        A parameter that some processes have no gradient for (an empty share) counts as zero there; one that none has a
        gradient for stays without.
        """
        if self.world == 1:
            return
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        with _meeting():
            distributed.all_reduce(present)
        used = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        if not used:
            return
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in used if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _meeting():
            distributed.all_reduce(flat)
        if not self._shares:
            flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


class AsManyProcesses:
    """Kept by a run whose loop is cut by the number of processes: it refuses to go on with another number of them."""

    def __init__(self, processes: Processes) -> None:
        self.world = processes.world

    def state_dict(self) -> dict[str, int]:
        """Return the number of processes."""
        return {"world": self.world}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Hold the number of a checkpoint against the one there is.

        Raises:
            AttarError: it is another.
        """
        if state["world"] != self.world:
            raise AttarError(
                f"this run was begun by {state['world']} processes and can only go on with as many, not with "
                f"{self.world}; start as many, or choose another folder with out=FOLDER"
            )


class _Gather(torch.autograd.Function):
    """All-gather of parts of any length, whose gradient is the sum over processes of what they ask of a part."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, tensor: Tensor, rank: int, world: int) -> Tensor:
        """Give every process all parts."""
        lengths = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world)]
        distributed.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
        counts = [int(length) for length in lengths]
        room = max(counts)  # parts of one length: padded to the longest, cut back below
        padded = torch.cat([tensor, tensor.new_zeros(room - len(tensor), *tensor.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(parts, padded)
        start = sum(counts[:rank])
        context.mine = slice(start, start + counts[rank])  # type: ignore[attr-defined]
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Sum the gradients over processes and keep this one's part."""
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[context.mine], None, None  # type: ignore[attr-defined]
