"""From embeddings to ranked moments for a workload of fixed shape: one sequence of launches.

The functions `context`, `similarity`, `feedback`, `proposals` and `nms` upload their tables and
allocate their results whenever they are called. Where the same videos are searched again and again,
a `Ranking` does that once; a call then only launches, and can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .context import ContextRules, context
from .context import OnDevice as Context
from .corpus import FEW, corpus
from .feedback import FeedbackRules, refined_on_host
from .feedback import OnDevice as Feedback
from .launch import Array, Launcher, check_array, check_offsets, launcher_for, launcher_on
from .nms import OnDevice as Nms
from .nms import Ranked, check_rules
from .nms import on_host as nms_on_host
from .proposal_rules import ProposalRules
from .proposals import OnDevice as Proposer
from .proposals import on_host as proposals_on_host
from .similarity import Curves, check_aware, check_counts, check_power, pairs_of
from .similarity import OnDevice as Similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingRules:
    """What each step is told.

    Raises:
        ValueError: a value is out of its range.
    """

    context: ContextRules | None = None
    """None where the agnostic embeddings are not to be mixed."""
    power: float = 1.0
    """Of `similarity`."""
    feedback: FeedbackRules | None = None
    """None for the curves of the variants as they are given."""
    proposals: ProposalRules = field(default_factory=ProposalRules)
    threshold: float = 0.75
    """Of `nms`."""
    top: int = 10
    """Moments of each pair, of `nms`."""

    def __post_init__(self) -> None:
        check_power(self.power)
        check_rules(self.threshold, self.top)


def mixed_rows(
    embeddings: Array,
    offsets: npt.ArrayLike,
    *,
    context_rules: ContextRules | None,
    rules: FeedbackRules | None,
) -> tuple[Array, Array | None]:
    """The rows that queries are compared with; they depend on no query.

    Args:
        embeddings: `(clips of all videos, dim)` float32 or float16, rows of unit length.
        offsets: `(videos + 1,)`.
        context_rules: how the rows are mixed; None: they are not.
        rules: their `context` mixes the rows once more; None: there are no such rows.

    Returns:
        The `agnostic` and the `second` of `refined_curves`.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    rows = embeddings
    if context_rules is not None:
        rows = context(embeddings, offsets, rules=context_rules)
    if rules is None or rules.context is None:
        return rows, None
    return rows, context(rows, offsets, rules=rules.context, rescale=True)


class Inputs(NamedTuple):
    """The arrays of one call; see `Ranking.__call__`."""

    simplified: Array
    detailed: Array | None
    agnostic: Array
    aware: Array | None
    aware_rows: Array | None
    second: Array | None = None


class Ranking:
    """Ranks the moments of one set of pairs of a query and a video, for any queries.

    With NumPy arrays, on the device ``"cpu"``, it runs the NumPy twins one after the other. With
    CuPy arrays, on the device ``"cuda"``, it launches four kernels on CuPy's current stream, with a
    context five, with feedback three more, or five where the feedback has a context: nothing is
    uploaded, allocated or waited for. After `capture` those launches are one. There a call
    overwrites what the call before has returned.

    It serves one call at a time: calls from two threads take turns by a lock of the caller's, calls
    on two streams by events.

    Example:
        >>> rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 0, 0]]
        >>> ranking = Ranking([0, 6], dim=4, simplified=1)
        >>> best = ranking(np.eye(4, dtype=np.float32)[None, 1:2], rows)
        >>> best.starts[0, 0], best.ends[0, 0]
        (np.int32(2), np.int32(4))
    """

    curves: Curves
    """Of the last call. On a device they are the same arrays for every call."""
    inputs: Inputs | None = None
    """After `capture` on a device: the arrays that the graph reads. What is written here, and given
    to a call, need not be copied."""

    def __init__(
        self,
        offsets: npt.ArrayLike,
        *,
        dim: int,
        simplified: int,
        detailed: int = 0,
        aware: int = 0,
        videos: npt.ArrayLike | None = None,
        dtype: npt.DTypeLike = np.float32,
        rules: RankingRules | None = None,
        mixed: bool = False,
        device: str = "cpu",
    ) -> None:
        """Upload and allocate; on a GPU, wait for it.

        Args:
            offsets: `(videos + 1,)`: the clips of video *v* are rows ``offsets[v]:offsets[v + 1]``.
            dim: numbers of an embedding.
            simplified: variants of each query that are compared with the agnostic captions.
            detailed: variants of each query that are compared with the aware captions.
            aware: aware captions of all pairs that a call has at most.
            videos: `(pairs,)` the video of each pair; by default pair *p* asks about video *p*.
            dtype: of the embeddings, float32 or float16.
            rules: how to rank, by default as `RankingRules` says.
            mixed: a call gives rows that `mixed_rows` has mixed by the same rules.
            device: ``"cpu"`` or ``"cuda"``, CuPy's current device.

        Raises:
            ValueError: a value does not fit.
            ImportError: a GPU is asked for and CuPy is not installed.
        """
        offsets = np.asarray(offsets, dtype=np.int64)
        clips = int(offsets.flat[-1]) if offsets.size else 0
        self.offsets = check_offsets("offsets", offsets, clips)
        pairs = len(self.offsets) - 1 if videos is None else np.size(np.asarray(videos))
        self.firsts, self.pair_offsets = pairs_of(self.offsets, videos, pairs)
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in ("float32", "float16"):
            raise ValueError(f"dtype: got {self.dtype.name}, expected float32 or float16")
        if dim < 1 or aware < 0:
            raise ValueError(f"dim, aware: got {dim}, {aware}, expected at least 1 and at least 0")
        check_counts(simplified, detailed)
        self.device, self.rules, self.mixed = device, rules or RankingRules(), mixed
        feedback = self.rules.feedback
        self._twice = feedback is not None and feedback.context is not None
        self.total = int(self.pair_offsets[-1])
        self._simplified = (pairs, simplified, dim)
        self._detailed = (pairs, detailed, dim)
        self._agnostic = (clips, dim)
        self._aware = (aware, dim)
        self._replay: Callable[[], object] | None = None
        self.launcher = launcher_on(device)
        if self.launcher is not None:
            self._prepare(self.launcher)

    def _prepare(self, launcher: Launcher) -> None:
        """Every table and every result on the device."""
        offsets, rules = self.pair_offsets, self.rules
        counts, dim = (self._simplified[1], self._detailed[1]), self._aware[1]
        self._context = self._second_context = self._feedback = None
        if rules.context is not None and not self.mixed:
            self._context = Context(launcher, self.offsets, dim, self.dtype, rules.context)
        shape = self.firsts, offsets, counts, dim, self.dtype
        self._similarity = Similarity(launcher, *shape, rules.power, twice=self._twice)
        if rules.feedback is not None:
            self._first_similarity = Similarity(launcher, *shape, rules.power)
            self._feedback = Feedback(launcher, *shape, rules.feedback)
            if rules.feedback.context is not None and not self.mixed:
                self._second_context = Context(
                    launcher, self.offsets, dim, self.dtype, rules.feedback.context, rescale=True
                )
        self._proposals = Proposer(launcher, offsets, self._similarity.rows, rules.proposals)
        self._nms = Nms(launcher, self._proposals.found.offsets, rules.threshold, rules.top)
        self.curves = self._similarity.curves
        unguided = np.full(self.total if self._aware[0] else 0, -1, np.int32)
        self._unguided = launcher.upload(unguided)
        launcher.finish()  # from here on, any stream may come

    def __call__(
        self,
        simplified: Array,
        agnostic: Array,
        *,
        detailed: Array | None = None,
        aware: Array | None = None,
        aware_rows: Array | None = None,
        second: Array | None = None,
    ) -> Ranked:
        """Rank; the curves are then in `curves`.

        A pair one of whose embeddings holds a NaN gets no moment, and its `curves.fused` hold the
        NaN.

        Args:
            simplified: `(pairs, simplified, dim)`, rows of unit length.
            agnostic: `(clips of all videos, dim)`, likewise.
            detailed: `(pairs, detailed, dim)`; none where there are 0 of them.
            aware: `(captions, dim)`, up to as many as were said; none if nobody has any.
            aware_rows: `(total clips of all pairs,)` int32: the row of `aware` that describes the
                clip for this pair's query, or -1. Needed with `aware`. On a device nobody checks
                that there are such rows.
            second: like `agnostic`; needed where the rows are `mixed` and the feedback has a
                context.

        Returns:
            Arrays of the kind that came in. On a device they are the same for every call: copy
            what is to outlast the next.

        Raises:
            ValueError: a shape or dtype is not what was said when this was made.
            TypeError: the arrays are not of this ranking's device.
        """
        given = Inputs(simplified, detailed, agnostic, aware, aware_rows, second)
        self._check(given)
        if self.launcher is None:
            return self._on_host(given)
        if self._replay is None or self.inputs is None:
            return self._launch(given)
        _fill(self.launcher, self.inputs, given, self._unguided)
        self._replay()
        return self._nms.kept

    def capture(self) -> Inputs | None:
        """Record the launches in a CUDA graph, which every call from now on launches instead.

        A graph reads the same memory each time: a call copies its arrays there, on the device,
        unless they are the very ones that this returns. On the CPU there is nothing to record.

        Returns:
            `inputs`; None on the CPU.
        """
        launcher = self.launcher
        if launcher is None or self._replay is not None:
            return self.inputs
        inputs = Inputs(
            launcher.empty(self._simplified, self.dtype),
            launcher.empty(self._detailed, self.dtype) if self._detailed[1] else None,
            launcher.empty(self._agnostic, self.dtype),
            launcher.empty(self._aware, self.dtype) if self._aware[0] else None,
            launcher.empty((self.total,), np.int32) if self._aware[0] else None,
            launcher.empty(self._agnostic, self.dtype) if self._takes_second else None,
        )
        if inputs.aware_rows is not None:
            launcher.copy(inputs.aware_rows, self._unguided)
        # Once over memory that nobody wrote: it compiles, which cannot be recorded.
        self._launch(inputs)
        self._replay = launcher.record(lambda: self._launch(inputs))
        self._replay()  # once more, so that no request waits for what the first launch prepares
        launcher.finish()
        self.inputs = inputs
        return inputs

    @property
    def _takes_second(self) -> bool:
        """Whether a call gives the rows of the second comparison."""
        return self._twice and self.mixed

    def _check(self, given: Inputs) -> None:
        launcher = launcher_for(**given._asdict())
        if (launcher is None) != (self.launcher is None):
            got, expected = ("NumPy", "CuPy") if launcher is None else ("CuPy", "NumPy")
            raise TypeError(
                f"got arrays from {got}, expected {expected}: this Ranking was made for the device "
                f"{self.device!r}"
            )
        dtype = self.dtype.name
        check_array("simplified", given.simplified, self._simplified, dtype)
        check_array("agnostic", given.agnostic, self._agnostic, dtype)
        if given.detailed is not None:
            check_array("detailed", given.detailed, self._detailed, dtype)
        elif self._detailed[1]:
            raise ValueError(f"detailed: got none, expected shape {self._detailed}")
        most, dim = self._aware
        check_aware(given.aware, given.aware_rows, dim, dtype, self.total)
        if given.aware is not None and len(given.aware) > most:
            raise ValueError(
                f"aware: got {len(given.aware)} captions, expected at most {most}: make a Ranking "
                "for more"
            )

        if (given.second is not None) != self._takes_second:
            got, expected = ("none", "rows") if given.second is None else ("rows", "none")
            raise ValueError(f"second: got {got}, expected {expected}, as mixed_rows gives them")
        if given.second is not None:
            check_array("second", given.second, self._agnostic, dtype)

    def _launch(self, given: Inputs) -> Ranked:
        if self._context is not None:
            given = given._replace(agnostic=self._context(given.agnostic))
        if self._feedback is not None:
            curves = self._first_similarity(*given[:5])
            moved = self._feedback(curves.variants, *given[:5])
            given = given._replace(simplified=moved.simplified, detailed=moved.detailed)
        if self._second_context is not None:
            given = given._replace(second=self._second_context(given.agnostic))
        curves = self._similarity(*given)
        found = self._proposals(curves.variants, curves.fused)
        return self._nms(found.starts, found.ends, found.scores)

    def _on_host(self, given: Inputs) -> Ranked:
        rules, offsets = self.rules, self.pair_offsets
        if not self.mixed:
            agnostic, second = mixed_rows(
                given.agnostic, self.offsets, context_rules=rules.context, rules=rules.feedback
            )
            given = given._replace(agnostic=agnostic, second=second)
        curves = refined_on_host(*given, self.firsts, offsets, rules.power, rules.feedback)
        self.curves = curves
        found = proposals_on_host(curves.variants, curves.fused, offsets, rules.proposals)
        return nms_on_host(*found, rules.threshold, rules.top)


def _fill(launcher: Launcher, inputs: Inputs, given: Inputs, unguided: Array) -> None:
    """Copy what is not there yet; where no clip has an aware caption, -1 for each."""
    given = given._replace(aware_rows=unguided if given.aware_rows is None else given.aware_rows)
    for target, source in zip(inputs, given, strict=True):
        if target is not None and source is not None and target is not source:
            launcher.copy(target, source)


def warm_up(dtype: npt.DTypeLike = np.float32, *, device: str = "cuda") -> None:
    """Compile every kernel for embeddings of this dtype, and wait: no request then pays for it.

    CuPy keeps what it compiles on disk, for each architecture, so that only the first process on a
    machine takes seconds. On the CPU there is nothing to do.

    Raises:
        ValueError: another device than ``"cpu"`` or ``"cuda"``, or another dtype.
        ImportError: a GPU is asked for and CuPy is not installed.
    """
    rules = RankingRules(context=ContextRules(), feedback=FeedbackRules(context=ContextRules()))
    ranking = Ranking([0, 1], dim=1, simplified=1, dtype=dtype, rules=rules, device=device)
    launcher = ranking.launcher
    if launcher is None:
        return
    one = launcher.upload(np.ones((1, 1), dtype))
    ranking(one.reshape(1, 1, 1), one)
    # Each goes another way; rows of 16 bytes may go yet another.
    for queries, dim in ((1, 1), (2, 1), (FEW + 1, 1), (FEW + 1, 16 // one.itemsize)):
        clips = launcher.upload(np.ones((1, dim), dtype))
        corpus(launcher.upload(np.ones((queries, dim), dtype)), clips, k=1)
    launcher.finish()
