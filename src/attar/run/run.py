"""The run: one piece of work in one folder, with its loops, kept state, learners, randomness, log and stages."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from attar import files, progress
from attar.errors import Interrupted
from attar.run import guards, keys, signals
from attar.run.checkpoint import Checkpoint, Checkpoints, Place, seconds_between
from attar.run.learner import Decay, Learner, Target
from attar.run.log import MetricsLog, SilentLog
from attar.run.memory import keep_freed_memory
from attar.run.plan import Plan
from attar.run.processes import Processes
from attar.run.record import Record, floats
from attar.run.state import Kept, KeptTensor, Stateful, pack

T = TypeVar("T")
S = TypeVar("S", bound=Stateful)
J = TypeVar("J", bound=bool | int | float | str | tuple[Any, ...] | list[Any] | dict[str, Any] | None)

LOG_RECORDS = 100  # per loop, at most, but for its last step; a record costs 0.1 ms


class Run(Processes):
    """One piece of work in one folder. Use as a context manager; methods get it as their first argument.

    Args:
        folder: where everything of this run lies.
        seed: the one number that all randomness hangs on.
        plan: threads, chunks, compilation.
        recipe: hash of what is run; checkpoints of another recipe are not used.
        time: budget in seconds; a run cut by it is `partial`.
        checkpoint_seconds: time between two checkpoints of a loop (it never changes a result); none means what
            ATTAR_CHECKPOINT_SECONDS says, else 30.
        scope: what all randomness of this run is kept apart by, besides the seed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        plan: Plan | None = None,
        recipe: str = "",
        time: float | None = None,
        copy: int = 0,
        checkpoint_seconds: float | None = None,
        title: str = "",
        scope: Sequence[str] = (),
    ) -> None:
        self.folder, self.seed, self.copy, self.recipe = Path(folder), seed, copy, recipe
        self.plan = plan or Plan()
        self.device = torch.device(self.plan.device)
        self.title = title
        self.partial = False  # cut by the time budget: never cached, never part of a claim
        self.parents: dict[str, str] = {}  # stage name -> fingerprint of its artifact
        self._time = time
        self.checkpoint_seconds = seconds_between() if checkpoint_seconds is None else checkpoint_seconds
        self._scope = list(scope)
        self._state: dict[str, Stateful] = {}
        self._loops: set[str] = set()
        self._loop: str | None = None
        self._step = 0
        self._record = Record()
        self._finishing: str | None = None
        self._saved: Place | None = None

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as exits, files.explained(self.folder):
            self.first(lambda: self._prepare(exits))
            self._checkpoints = Checkpoints(self.folder / "checkpoints", self.recipe)
            self._log = MetricsLog(self.folder / "metrics.jsonl") if self.rank == 0 else SilentLog()
            exits.callback(self._log.close)
            exits.enter_context(signals.handled())
            keep_freed_memory()
            exits.enter_context(guards.threads(self.plan.threads))
            low = self.plan.precision == "bfloat16"
            exits.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=low))
            furthest = self._checkpoints.furthest()
            self._replay_until = furthest  # until then this start only repeats what is already logged
            self._log.truncate(furthest.log_bytes if furthest else 0)
            self._began = time.monotonic()
            self._reseed()
            self._exits = exits.pop_all()
        return self

    def _prepare(self, exits: contextlib.ExitStack) -> None:
        """Make and lock the folder, and remove what killed writers left."""
        files.make_folder(self.folder)
        exits.enter_context(guards.locked(self.folder))
        files.remove_leftovers(self.folder)
        files.remove_leftovers(self.folder / "checkpoints")

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    @property
    def resumed(self) -> bool:
        """Whether this start found a checkpoint to go on from."""
        return self._checkpoints.furthest() is not None

    @property
    def time_left(self) -> float | None:
        """What is left of the time budget, in seconds, if there is one."""
        return None if self._time is None else max(0.0, self._time - (time.monotonic() - self._began))

    def forget(self) -> None:
        """Remove the checkpoints: the artifact is saved."""
        self.first(self._checkpoints.clear)

    # ------------------------------------------------------------------ loops

    @property
    def step(self) -> int:
        """The step the current loop is in."""
        return self._step

    @property
    def loop_name(self) -> str | None:
        """The loop that is running, if one is."""
        return self._loop

    def loop(self, name: str, steps: int) -> Iterator[int]:
        """Yield the steps of a loop that survives interruption.

        A step ends when the next is asked for; only then are signals honoured and checkpoints written. `break`,
        `return` and exceptions save nothing. A loop that finished in an earlier start restores its end state and
        yields nothing.

        Raises:
            RuntimeError: loops nest, or a name is used twice.
        """
        if self._loop is not None:
            raise RuntimeError(f"loop '{name}' stands inside loop '{self._loop}'; loops do not nest: use a plain for")
        if name in self._loops:
            raise RuntimeError(f"loop '{name}' was run before in this run; give every loop its own name")
        self._loops.add(name)
        start, finished = self._enter(name)
        if finished:
            self._reseed(after=name)
            return
        self._loop, self._finishing = name, None
        self._scope.append(name)
        title = f"{self.title} {name}".strip()
        try:
            with progress.task(title, start, steps, shown=self.rank == 0) as show, signals.deferred():
                self._last_saved = time.monotonic()
                done = start
                while done < steps and self._finishing is None:
                    self._begin(done, steps)
                    yield done
                    done += 1
                    show(done, self._record.note())
                    self._end(name, done, steps)
                if done == start:  # nothing to do: a loop of no steps, or one killed behind its last
                    self._save(name, done, finished=True)
        finally:
            self._loop = None
            self._scope.pop()
            self._record.clear()
            self._reseed(after=name)

    def finish(self, reason: str) -> None:
        """End the current loop after this step."""
        self._finishing = reason

    def _enter(self, name: str) -> tuple[int, bool]:
        """Restore the loop's checkpoint, if there is one; return the steps done and whether it had finished."""
        found = self._checkpoints.latest(name)
        if found is None:
            return 0, False
        self._restore(found)
        return found.place.step, found.place.finished

    def _begin(self, step: int, steps: int) -> None:
        self._step = step
        self._record.due = step % -(-steps // LOG_RECORDS) == 0 or step == steps - 1
        self._reseed(step)

    def _end(self, name: str, done: int, steps: int) -> None:
        """Close a step: log it, and save and stop where that is due. The last step's checkpoint is the end state."""
        last = done >= steps or self._finishing is not None
        now = time.monotonic()
        late = self._time is not None and now - self._began > self._time
        waited = now - self._last_saved >= self.checkpoint_seconds
        signum, over, due = self.agree(signals.pending() or 0, late, waited)
        if self._record.due:
            self._check_finite()
        if logged := self._record.close(self):
            self._write({"loop": name, "step": done - 1}, logged)
        if last or over:
            for learner in self._learners():
                learner.raise_if_mostly_skipped()
        if last or over or signum or due:
            self._save(name, done, finished=last)
            self._last_saved = now
        if signum:
            where = f"at step {done} of {steps} of '{name}'"
            raise Interrupted(f"stopped {where}, all saved; the same command goes on from there", signum)
        if over and not last:
            self.partial = True
            self.finish("time budget")

    def _save(self, loop: str, step: int, *, finished: bool) -> None:
        self._check_finite()
        if self.partial:  # what follows a cut loop is not what the whole run would do
            return
        place = Place(len(self._loops), step, finished)
        if self._saved == place:
            return
        self.first(lambda: self._save_here(loop, place))
        self._saved = place

    def _save_here(self, loop: str, place: Place) -> None:
        state = {name: dict(item.state_dict()) for name, item in self._state.items()}
        self._checkpoints.save(loop, place, state, log_bytes=self._log.position())

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        for name, item in self._state.items():
            if name not in state:
                raise RuntimeError(f"'{name}' is not in checkpoint {checkpoint.path.name}; was the method changed?")
            item.load_state_dict(state[name])
        if self._replay_until is not None and checkpoint.place >= self._replay_until.place:
            self._replay_until = None

    def _check_finite(self) -> None:
        for learner in self._learners():
            learner.raise_if_nonfinite()

    def _learners(self) -> list[Learner]:
        return [item for item in self._state.values() if isinstance(item, Learner)]

    def tell_skipped(self) -> None:
        """Tell how many steps were left out because their gradients were not finite, if any were."""
        for learner in self._learners():
            if learner.skipped and self.rank == 0:
                whole = learner.taken + learner.skipped
                progress.tell(f"{learner.skipped} of {whole} steps of '{learner.name}' were left out: not finite")

    # ------------------------------------------------------------------ state

    def learner(
        self,
        name: str,
        target: Target,
        optimizer: Any,
        *,
        schedule: Any = None,
        steps: int = 0,
        ema: Mapping[str, Decay] | None = None,
        clip: float | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> Learner:
        """Register parameters with their own optimizer.

        Args:
            name: unique in the run.
            target: a module (its parameters that require gradients), a tensor, or tensors.
            optimizer: an optimizer spec (`SGD(lr=…)`).
            schedule: a schedule spec over the learner's own `steps`.
            steps: length of the schedule.
            ema: averages to keep, name to `Decay`.
            clip: largest gradient norm.
            on_nonfinite: raise an error, or leave the step out and count it.
        """
        made = Learner(
            self, name, target, optimizer, schedule=schedule, steps=steps, ema=ema, clip=clip, on_nonfinite=on_nonfinite
        )
        self._register(name, made)
        return made

    @overload
    def keep(self, name: str, value: Tensor) -> Tensor: ...
    @overload
    def keep(self, name: str, value: S) -> S: ...
    @overload
    def keep(self, name: str, value: J) -> Kept[J]: ...

    def keep(self, name: str, value: Any) -> Any:
        """Register what changes during a loop, and return the live object.

        A tensor comes back as it is and is restored in place, an object with `state_dict` too; an immutable value comes
        back as `Kept` with `.value`.
        """
        if isinstance(value, Tensor):
            self._register(name, KeptTensor(value))
            return value
        item = value if isinstance(value, Stateful) else Kept(value)
        pack(item.state_dict(), {}, name)  # refuses now what no checkpoint could hold
        self._register(name, item)
        return item

    def _register(self, name: str, item: Stateful) -> None:
        if self._loop is not None:
            raise RuntimeError(f"'{name}' is registered inside loop '{self._loop}'; register it before the loop")
        if name in self._state:
            raise RuntimeError(f"'{name}' is registered twice in this run; names are unique")
        self._state[name] = item

    # ------------------------------------------------------------------ gradients

    def backward(self, loss: Tensor | Mapping[str, Tensor], *learners: Learner, joined: bool = False) -> None:
        """Send the gradients of a scalar loss (or the sum of named terms) to these learners alone.

        A loss of what `joined` every chunk gave is the same in all processes, and counts once.
        """
        terms = dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
        if joined:
            terms = {name: term / self.world for name, term in terms.items()}
        total = functools.reduce(torch.add, terms.values())
        parameters = [p for learner in learners for p in learner.parameters]
        torch.autograd.backward(total, inputs=parameters)
        for name, term in terms.items():
            learners[0].watch(name, term)
            self._record.add_loss(f"{learners[0].name}/{name}", term)

    # ------------------------------------------------------------------ randomness

    def rng(self, name: str, *counters: int) -> torch.Generator:
        """Return a CPU generator that depends on seed, scope (loop), name and counters alone."""
        return keys.generator(self.seed, self._scope, name, counters)

    def key(self, name: str, *counters: int) -> int:
        """Return a 63-bit integer that depends on seed, scope (loop), name and counters alone."""
        return keys.key(self.seed, self._scope, name, counters)

    def _reseed(self, *counters: int, after: str | None = None) -> None:
        """Seed the global generators for a step, or for the code after a loop or stage that may have been skipped."""
        name = f"globals of rank {self.rank}" + ("" if after is None else f" after {after}")
        keys.seed_globals(keys.key(self.seed, self._scope, name, counters))

    def chunks(self, classes: int, images_per_class: int, *, whole: bool = False) -> Iterator[slice]:
        """Yield equal slices of this process's classes that the plan says go through a network together.

        Networks with batch statistics (`whole`) get all classes at once, in the first process: a batch of one class
        would cancel its mean.
        """
        share = self.shard(classes)
        mine = range(classes)[share] if not whole else range(classes if self.rank == 0 else 0)
        fitting = [d for d in range(1, len(mine) + 1) if len(mine) % d == 0 and d * images_per_class <= self.plan.chunk]
        size = classes if whole else max(fitting, default=1)
        for start in range(mine.start, mine.stop, size):
            yield slice(start, start + size)

    def compiled(self, function: Callable[..., T], images: int) -> Callable[..., T]:
        """Return the function compiled for static shapes, if the plan says so for this many images in all its calls."""
        return self.plan.compiled(function, images)

    # ------------------------------------------------------------------ log

    def log(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Write named numbers to metrics.jsonl: in a loop as part of the step's record, else as their own record."""
        numbers = {**(values or {}), **more}
        if self._loop is not None:
            self._record.add(numbers)
        else:
            self._write({"loop": None}, floats(numbers))

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file into the run's folder."""
        self.first(lambda: files.write_json(self.folder / name, value))

    def _write(self, where: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        if self._replay_until is None:
            self._log.write({**where, "time": round(time.monotonic() - self._began, 3), **numbers})

    # ------------------------------------------------------------------ stages

    def stage(self, name: str, method: Any, *, seed: int | None = None, **inputs: Any) -> Any:
        """Run a method as a cached child run and return its artifact.

        The cache's key holds method, version, fields, seed, fingerprints of the inputs and the plan; the caller's seed
        never leaks in. Without a `seed` the stage is one that runs share: its seed is the run's `copy` (0), and it
        draws apart from the runs that use it. With one, it is what the method gives as a run of its own with that seed.
        """
        from attar.run.stage import stage

        with self._pushed(name):
            artifact = stage(self, name, method, seed, inputs)
        self.parents[name] = artifact.fingerprint
        return artifact

    def map(self, name: str, function: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Apply a picklable function to items in `plan.workers` processes of all launched ones; keep the order."""
        from attar.run.spread import spread_out

        with self._pushed(name):
            return spread_out(self, name, function, list(items), self.plan)

    @contextlib.contextmanager
    def _pushed(self, name: str) -> Iterator[None]:
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()
            torch.set_num_threads(self.plan.threads)
            self._reseed(*([self._step] if self._loop else []), after=name)
