"""What several processes that work on one run do together; on one process, nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Processes:
    """The part of a run that meets the other processes of its group.

    Convention: the loss of a run is the sum of its processes' losses. Each process computes its share, divided by
    global counts, and `Learner.step` sums the gradients; nothing else does.
    """

    @property
    def world(self) -> int:
        """The number of processes that work on this run."""
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The number of this process."""
        return distributed.get_rank() if self.world > 1 else 0

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate `[n, …]` tensors over processes along the first dimension; identity on one process.

        Differentiable: what the losses of all processes ask of this process's part is summed, so a loss that every
        process computes over the whole is to be divided by `world`. The parts may differ in n.
        """
        return tensor if self.world == 1 else _Gather.apply(tensor, self.rank, self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of counts or sums over processes, without gradient; identity on one process."""
        if self.world > 1:
            tensor = tensor.detach().clone()
            distributed.all_reduce(tensor)
        return tensor

    def shard(self, count: int) -> slice:
        """Return this process's share of `count` items: the whole on one process."""
        bounds = [count * rank // self.world for rank in range(self.world + 1)]
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of parameters over processes, in place.

        A parameter that some processes have no gradient for (an empty share) counts as zero there; one that none has a
        gradient for stays without.
        """
        if self.world == 1:
            return
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        distributed.all_reduce(present)
        used = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        if not used:
            return
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in used if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


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
