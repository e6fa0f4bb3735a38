"""How much work a block of code does: passes through networks, network evaluations, updates, FLOPs and seconds."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from attar.errors import RecipeError, did_you_mean
from attar.nets.network import Network

T = TypeVar("T")


@dataclass
class Passes:
    """What went through one name; rows are the first dimension of the first tensor of a call: images, or sequences."""

    calls: int = 0
    forward: int = 0  # rows
    backward: int = 0  # rows whose output's gradient was computed, once for each backward that reached it
    teacher: bool = False  # its rows are answers of the teacher


@dataclass(frozen=True)
class Work:
    """Everything a `WorkMeter` counted."""

    passes: Mapping[str, Passes]
    updates: int  # steps of all optimizers
    flops: int | None  # of matrix products, convolutions and attention, 2 for a multiply-add; none: not counted
    seconds: float  # of the clock
    cpu_seconds: float  # of all threads of this process

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)


class WorkMeter:
    """Count the passes, updates, FLOPs and seconds of a block of code.

    Watched networks are counted by hooks that the end of the block takes off again. A backward pass counts when its
    graph was made, and is gone through, inside the block: the second-order part of gradient matching sends a gradient
    through the outputs of the synthetic images once more, so these count twice. Every step of an optimizer is an
    update. Blocks may follow each other, which adds up, and nest; a run that keeps the meter (`run.keep("work",
    meter)`) counts each step once however often it is killed. Work of other processes is not seen, and FLOPs are those
    of the thread that opened the block.

    Args:
        flops: count floating-point operations with torch's counter, which makes small operations several times as slow.

    >>> net = nn.Linear(3, 2)
    >>> meter = WorkMeter()
    >>> meter.watch("net", net)
    >>> with meter:
    ...     net(torch.ones(5, 3)).sum().backward()
    >>> meter.amounts()
    {'forward': 5, 'backward': 5, 'updates': 0, 'teacher_calls': 0}
    """

    def __init__(self, *, flops: bool = False) -> None:
        self.passes: dict[str, Passes] = {}
        self.updates = 0
        self._flops = 0 if flops else None
        self._seconds = self._cpu_seconds = 0.0
        self._watches: weakref.WeakKeyDictionary[nn.Module, _Watch] = weakref.WeakKeyDictionary()
        self._kinds: dict[type[nn.Module], tuple[str, bool]] = {}
        self._unseen: set[str] = set()
        self._depth = 0
        self._handles: list[Any] = []
        self._counter: FlopCounterMode | None = None
        self._began = (0.0, 0.0)

    # ------------------------------------------------------------------ what is counted

    def watch(self, name: str, module: nn.Module, *, teacher: bool = False) -> None:
        """Count the passes of a network under `name`; several networks may share a name.

        A `Network` is counted however it is entered: `forward`, `embed` or `features`. Any other module must be called.
        Copies of the module are not counted with it.

        Args:
            name: of the row in `passes`.
            module: a whole network.
            teacher: its rows are also `teacher_calls`.

        Raises:
            RecipeError: the module is a part of a watched one, or holds one: rows would count twice.
        """
        if (seen := self._watches.get(module)) is not None:  # by `watch_every` before; the more special name wins
            seen.rename(self, name, teacher)
            return
        for known, watch in list(self._watches.items()):
            if _holds(known, module) or _holds(module, known):
                raise RecipeError(
                    f"'{name}' and the watched '{watch.name}' share modules, so rows would count twice. "
                    "Watch whole networks, or use another WorkMeter for the parts"
                )
        self._add(name, module, teacher)

    def watch_every(self, name: str, kind: type[nn.Module] = Network, *, teacher: bool = False) -> None:
        """Count under `name` every module of a class that is built inside the block, such as a method's fresh nets."""
        self._passes(name, teacher)
        self._kinds[kind] = (name, teacher)

    def counted(self, name: str, function: Callable[..., T], *, teacher: bool = False) -> Callable[..., T]:
        """Return the function with its calls counted under `name`: for compiled or functional forms of a network."""
        passes = self._passes(name, teacher)

        def call(*args: Any, **kwargs: Any) -> T:
            output = function(*args, **kwargs)
            if self._depth:
                self._count(passes, (*args, kwargs), output)
            return output

        return call

    # ------------------------------------------------------------------ the block

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        self._handles = [register_optimizer_step_post_hook(self._updated)]
        if self._kinds:
            self._handles.append(register_module_module_registration_hook(self._registered))
            self._handles.append(register_module_parameter_registration_hook(self._registered))
        for module, watch in list(self._watches.items()):
            watch.attach(self, module)
        if self._flops is not None:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        _finish_queued()
        self._began = (time.perf_counter(), time.process_time())
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        _finish_queued()
        self._seconds += time.perf_counter() - self._began[0]
        self._cpu_seconds += time.process_time() - self._began[1]
        if self._counter is not None and self._flops is not None:
            self._counter.__exit__(*error)
            self._flops += self._counter.get_total_flops()
            self._counter = None
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for watch in list(self._watches.values()):
            watch.detach()

    # ------------------------------------------------------------------ results

    def result(self) -> Work:
        """Return everything counted so far; an open block's FLOPs and seconds come with its end.

        Raises:
            RecipeError: a watched network ran inside compiled code, where hooks see nothing.
        """
        self._refuse_unseen()
        passes = {name: Passes(**asdict(row)) for name, row in self.passes.items()}
        return Work(passes, self.updates, self._flops, self._seconds, self._cpu_seconds)

    def amounts(self) -> dict[str, int]:
        """Return the currencies of a claim: `meter.add(**work.amounts())`.

        Raises:
            RecipeError: a watched network ran inside compiled code, where hooks see nothing.
        """
        self._refuse_unseen()
        rows = self.passes.values()
        return {
            "forward": sum(row.forward for row in rows),
            "backward": sum(row.backward for row in rows),
            "updates": self.updates,
            "teacher_calls": sum(row.forward for row in rows if row.teacher),
        }

    def nfe(self, name: str, samples: int) -> float:
        """Return network evaluations per sample: rows forward / samples, so guidance in one doubled batch counts twice.

        Raises:
            RecipeError: an unknown name, or fewer than one sample.
        """
        self._refuse_unseen()
        if name not in self.passes:
            raise RecipeError(f"nothing is watched as '{name}'{did_you_mean(name, self.passes)}")
        if samples < 1:
            raise RecipeError(f"samples must be at least 1; got {samples}")
        return self.passes[name].forward / samples

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of passes and updates, for a checkpoint."""
        return {"updates": self.updates, "passes": {name: asdict(row) for name, row in self.passes.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the counts at a checkpoint, in place."""
        self.updates = state["updates"]
        for row in self.passes.values():
            row.calls = row.forward = row.backward = 0
        for name, counts in state["passes"].items():
            row = self._passes(name, counts["teacher"])
            row.calls, row.forward, row.backward = counts["calls"], counts["forward"], counts["backward"]

    # ------------------------------------------------------------------ counting

    def _passes(self, name: str, teacher: bool) -> Passes:
        row = self.passes.setdefault(name, Passes(teacher=teacher))
        if row.teacher != teacher:
            raise RecipeError(f"'{name}' is watched as a teacher and as something else; give them two names")
        return row

    def _add(self, name: str, module: nn.Module, teacher: bool) -> None:
        watch = self._watches[module] = _Watch(name, self._passes(name, teacher))
        if self._depth:
            watch.attach(self, module)

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        """Watch a module of a wanted class while it is being built."""
        for kind, (label, teacher) in self._kinds.items():
            if not isinstance(module, kind) or (isinstance(module, Network) and "collapse" not in module._modules):
                continue  # a Network's last stages are not there yet
            if module not in self._watches:
                self._add(label, module, teacher)

    def _updated(self, *_: object) -> None:
        self.updates += 1

    def _count(self, passes: Passes, inputs: tuple[Any, ...], output: Any) -> None:
        """Count a forward pass, and its backward when a gradient comes to any of the outputs."""
        outputs = list(_tensors(output))
        rows = _rows(inputs) * (_copies(outputs[-1]) if outputs else 1)
        passes.calls += 1
        passes.forward += rows

        last = -1

        def backward(_: Tensor) -> None:
            nonlocal last
            task = torch._C._current_graph_task_id()  # a backward counts once, however many of the outputs it reaches
            if task != last and self._depth:
                last = task
                passes.backward += rows

        # Hooks on the outputs rather than full backward hooks of the module: these forbid changing an output in place
        # and warn where no input asks for a gradient. `register_multi_grad_hook` does the same at four times the cost.
        for tensor in outputs:
            for level in _levels(tensor):
                if level.grad_fn is not None:
                    level.register_hook(backward)

    def _refuse_unseen(self) -> None:
        if self._unseen:
            raise RecipeError(
                f"watched inside compiled code: {', '.join(sorted(self._unseen))}. Hooks see nothing there, so the "
                "counts would be too small; count the compiled function instead: embed = meter.counted('net', compiled)"
            )


class _Watch:
    """The hooks on one watched network, which they do not keep alive, and what they count for."""

    def __init__(self, name: str, passes: Passes) -> None:
        self.name, self.passes = name, passes
        self._handles: list[Any] = []
        self._opened: list[Tensor] = []  # a Network's first map, until its embedding is there

    def rename(self, meter: WorkMeter, name: str, teacher: bool) -> None:
        self.name, self.passes = name, meter._passes(name, teacher)

    def attach(self, meter: WorkMeter, module: nn.Module) -> None:
        def opened(inputs: tuple[Any, ...], output: Any) -> None:
            self._opened = [output]

        def passed(inputs: tuple[Any, ...], output: Any) -> None:
            first, self._opened = self._opened, []
            meter._count(self.passes, inputs, (*first, output))

        if isinstance(module, Network):
            # All ways through a network pass its first stage and `collapse`. A loss on a map alone sends no gradient to
            # the embedding, a frozen first stage none to the first map: either of the two stands for a backward pass.
            self._hook(meter, module.stages[0], opened)
            self._hook(meter, module.collapse, passed)
        else:
            self._hook(meter, module, passed)

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._opened = [], []

    def _hook(self, meter: WorkMeter, target: nn.Module, act: Callable[[tuple[Any, ...], Any], None]) -> None:
        here = weakref.ref(target)

        def unseen() -> bool:
            meter._unseen.add(self.name)
            return True

        # What torch.compiler.assume_constant_result sets, without loading the compiler: run once, while tracing.
        unseen.__dict__["_dynamo_marked_constant"] = True

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                unseen()
            elif module is here():  # a deep copy takes the hooks along
                act((*args, kwargs), output)

        self._handles.append(target.register_forward_hook(hook, with_kwargs=True))


def _holds(whole: nn.Module, part: nn.Module) -> bool:
    return any(module is part for module in whole.modules())


def _rows(inputs: tuple[Any, ...]) -> int:
    tensor = inputs[0] if inputs and isinstance(inputs[0], Tensor) else next(_tensors(inputs), None)
    return 1 if tensor is None or not tensor.dim() else len(tensor)


def _levels(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, and inside `torch.func` transforms what each of them wraps: every level has its own graph."""
    yield tensor
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
        yield tensor


def _copies(tensor: Tensor) -> int:
    """Return how many times `vmap` computes a tensor side by side."""
    copies = 1
    for level in _levels(tensor):
        if _functorch.is_batchedtensor(level):
            copies *= _functorch.get_unwrapped(level).shape[_functorch.maybe_get_bdim(level)]
    return copies


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _finish_queued() -> None:
    """Wait for the kernels that are queued on a GPU, so that the clock holds what was asked for in the block."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
