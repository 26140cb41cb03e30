"""The configuration of a search and its presets: the constants of the method, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

from .errors import GranAlignError, short_repr
from .kernels import ContextRules, FeedbackRules, ProposalRules

# The limits of what is read are part of the configuration; they lie where nothing is imported.
from .parsing.limits import *  # noqa: F403
from .parsing.limits import FRAMES_PER_CLIP, LEAST_CLIP_SECONDS, MOST_CLIP_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverConfig:
    """The constants that turn captions and queries into moments. Lengths are in clips.

    Raises:
        GranAlignError: a value is of the wrong type or out of its range.
    """

    scorer: str = "captions"
    """The source of the curves: ``"captions"``, the method (GranAlign, arXiv 2601.00584);
    ``"frames"``, the cosines of the query and its rewrites with the frames; or ``"recognition"``,
    the probability of a yes for each frame (Li, Gou and Cai, arXiv 2608.04480)."""
    key_frames: float = 0.25
    """Share of a video's frames that get a query-aware caption (the paper's K%, unpublished)."""
    exists_frames: int = 3
    """Frames that `exists` averages over: those with the greatest probabilities."""
    exists_threshold: float = 0.2
    """Where `exists` is below, the video probably does not show the query. On 16 videos of the
    miniatures it is below for 1.6% of the queries that a video shows (2.6% by recognition), and for
    83% of the near misses (84%). It must stay below 1/3, which `exists` is if one clip alone surely
    shows the query and `exists_frames` is 3."""
    use_query: bool = False
    """Whether the query itself is one more simplified variant; without rewrites it always is."""
    context: ContextRules | None = None
    """How the embedding of an agnostic caption is mixed with those of near and similar clips; None:
    it is not mixed."""
    power: float = 1.0
    """Exponent of the normalised curves."""
    feedback: FeedbackRules | None = None
    """How each variant moves towards the clips that it ranks first, before a second comparison;
    None: there is one comparison."""
    frames_weight: float = 0.0
    """Weight of the frames' curve beside those of the captions, for an index that has both and a
    search with the frame encoder; 0 leaves it out."""
    first_stage_frames: float = 0.0
    """Weight of the frames' cosines beside those of the captions where all videos of a library are
    compared, for videos that have both and a search with the frame encoder; 0 leaves them out."""
    approximate: float = 0.0
    """Share of a library's approximate indexes that the first stage reads; 0 compares all clips,
    with the exact result. It counts where `granalign library approximate` made such indexes."""
    proposals: ProposalRules = field(default_factory=ProposalRules)
    """How candidates are cut out of the curves and scored."""
    nms_threshold: float = 0.75
    """A candidate is suppressed if its IoU with a better one is this or more."""
    top: int = 10
    """Most moments of a search; QVHighlights scores ten."""
    whole_seconds: float = 1800.0
    """Seconds of the longest video that is searched whole; of a longer one the best stretches are.
    In half an hour 225 frames are key, each of which a model captions for every query. The other
    constants were chosen on videos of 150 s."""
    best_stretches: int = 6
    """Stretches of a longer video that are searched: six of 150 s are a quarter of an hour."""
    clip_seconds: float | None = None
    """Seconds of the clips that the constants are made for. An index of other clips is searched
    with a warning; None: without."""
    frames_per_clip: int | None = None
    """Frames of the clips that the constants are made for; likewise."""

    def __post_init__(self) -> None:
        # Types first: to compare a text with a number would raise a TypeError.
        for name, kinds, expected in _FIELD_TYPES:
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise GranAlignError(f"{name}: got {short_repr(value)}, expected {expected}")
        if self.scorer not in ("captions", "frames", "recognition"):
            raise GranAlignError(
                f"scorer: got {self.scorer!r}, expected 'captions', 'frames' or 'recognition'"
            )
        if not 0 < self.key_frames <= 1:
            raise GranAlignError(f"key_frames: got {self.key_frames}, expected above 0, at most 1")
        if self.exists_frames < 1:
            raise GranAlignError(f"exists_frames: got {self.exists_frames}, expected at least 1")
        if not 0 <= self.exists_threshold <= 1:
            raise GranAlignError(
                f"exists_threshold: got {self.exists_threshold}, expected a probability, 0 to 1"
            )
        if not 0.1 <= self.power <= 10:
            raise GranAlignError(f"power: got {self.power}, expected 0.1 to 10")
        if not 0 <= self.frames_weight < 1:
            raise GranAlignError(
                f"frames_weight: got {self.frames_weight}, expected from 0 to below 1"
            )
        if not 0 <= self.first_stage_frames <= 100:
            raise GranAlignError(
                f"first_stage_frames: got {self.first_stage_frames}, expected from 0 to 100"
            )
        if not 0 <= self.approximate <= 1:
            raise GranAlignError(f"approximate: got {self.approximate}, expected from 0 to 1")
        if not 0 < self.nms_threshold <= 1:
            raise GranAlignError(
                f"nms_threshold: got {self.nms_threshold}, expected an IoU above 0 and at most 1"
            )
        if not self.whole_seconds >= 300:
            raise GranAlignError(
                f"whole_seconds: got {self.whole_seconds}, expected seconds from 300"
            )
        if self.best_stretches < 1:
            raise GranAlignError(f"best_stretches: got {self.best_stretches}, expected at least 1")
        if self.clip_seconds is not None and not (
            LEAST_CLIP_SECONDS <= self.clip_seconds <= MOST_CLIP_SECONDS
        ):
            raise GranAlignError(
                f"clip_seconds: got {self.clip_seconds}, expected seconds from "
                f"{LEAST_CLIP_SECONDS:g} to {MOST_CLIP_SECONDS:g}, or None"
            )
        if self.frames_per_clip not in (None, *FRAMES_PER_CLIP):
            raise GranAlignError(
                f"frames_per_clip: got {self.frames_per_clip}, expected one of "
                f"{', '.join(map(str, FRAMES_PER_CLIP))}, or None"
            )
        if not 1 <= self.top <= _MOST_TOP:
            raise GranAlignError(f"top: got {self.top}, expected from 1 to {_MOST_TOP:,}")


_MOST_TOP = 1_000_000
"""Most moments that may be asked for: a GPU reserves 16 bytes for each of every query."""

_FIELD_TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("scorer", (str,), "'captions', 'frames' or 'recognition'"),
    ("key_frames", (Real,), "a number above 0, at most 1"),
    ("exists_frames", (Integral,), "an integer of at least 1"),
    ("exists_threshold", (Real,), "a probability, 0 to 1"),
    ("use_query", (bool,), "True or False"),
    ("context", (ContextRules, type(None)), "ContextRules or None"),
    ("power", (Real,), "a number from 0.1 to 10"),
    ("feedback", (FeedbackRules, type(None)), "FeedbackRules or None"),
    ("frames_weight", (Real,), "a number from 0 to below 1"),
    ("first_stage_frames", (Real,), "a number from 0 to 100"),
    ("approximate", (Real,), "a number from 0 to 1"),
    ("proposals", (ProposalRules,), "ProposalRules"),
    ("nms_threshold", (Real,), "a number above 0, at most 1"),
    ("top", (Integral,), f"an integer from 1 to {_MOST_TOP:,}"),
    ("whole_seconds", (Real,), "seconds from 300"),
    ("best_stretches", (Integral,), "an integer of at least 1"),
    ("clip_seconds", (Real, type(None)), "seconds or None"),
    ("frames_per_clip", (Integral, type(None)), "an integer or None"),
)
"""Each field of `RetrieverConfig` with its types, and how an error describes them."""

_WHOLE: Mapping[str, RetrieverConfig] = {
    # The paper's text and nothing else. Three constants are not published: a clip is high-scoring
    # above Otsu's threshold on S_f, runs join over one low clip (tau), and the lowest tenth of the
    # candidates goes (n). They are the best on QVHighlights val of tau 0 to 3 and n 0 to 30%.
    "paper": RetrieverConfig(proposals=ProposalRules(stretch=False, gap=1, drop=0.1)),
    # Round values near the best on QVHighlights val, the same for every query. This is optimistic:
    # if the values are chosen without a fifth of the videos, they score 0.7 mAP less on that fifth.
    # bench/commands/tuning.py shows this, and what each part adds.
    # frames_weight stays 0: with published weights the frames' curve was not measured, and on a GPU
    # the moments would be cut once more on the host. On 12 videos of the miniatures a weight of 1/8
    # raises mAP from 81.7 to 82.2, and without query-aware captions from 54.2 to 65.7; their frame
    # encoder was trained on just these scenes.
    "tuned": RetrieverConfig(
        use_query=True,
        context=ContextRules(radius=5, power=3),
        power=1.5,
        feedback=FeedbackRules(
            clips=12, level=0.6, sigma=1.0, context=ContextRules(radius=20, power=6)
        ),
        proposals=ProposalRules(
            sigma=1.0,
            variants=True,
            high_factor=0.5,
            low_factor=0.9,
            fine_sigma=0.0,
            fine_factor=0.8,
            own_share=0.5,
        ),
    ),
    # The query and its rewrites, compared with frames. The rules are those of `tuned`, without
    # context and with less smoothing: embeddings of frames change less from clip to clip than the
    # words of captions do. Chosen on 16 videos of the miniatures; on 40 others it scores 97.3
    # R1@0.5 and 87.3 mAP with rewrites by rules, and the rules of `tuned` 94.8 and 84.3. No
    # published weights of CLIP or SigLIP were measured.
    "visual": RetrieverConfig(
        scorer="frames",
        power=1.5,
        proposals=ProposalRules(
            sigma=0.5, variants=True, high_factor=0.5, low_factor=0.9, own_share=0.5
        ),
    ),
    # One curve, the probability of a yes, with the rules of `tuned` for candidates.
    "recognition": RetrieverConfig(
        scorer="recognition",
        proposals=ProposalRules(sigma=1.0, high_factor=0.5, low_factor=0.9),
    ),
    # Li, Gou and Cai, arXiv 2608.04480: clips of 3 s with 6 frames, a softmax over yes and no, a
    # Gaussian of a fixed 3 s, which is one clip, and Otsu's threshold once. The question, the score
    # of a run and the suppression of others are those of `recognition`.
    "reze": RetrieverConfig(
        scorer="recognition",
        proposals=ProposalRules(sigma=1.0),
        clip_seconds=3.0,
        frames_per_clip=6,
    ),
}
"""Presets that name all values that are not the defaults."""

PRESETS: Mapping[str, RetrieverConfig] = {
    **_WHOLE,
    # For one wanted moment of usually 20 s or more: runs below 10 clips lose up to 29% of their
    # score. On the queries of QVHighlights val with one window R1@0.5, R1@0.7 and mIoU rise by 0.5,
    # 0.4 and 0.4 (0.7, 0.7 and 0.8 on videos that did not choose the values); where moments have a
    # few seconds they fall. The values are round ones near the best of 6 to 12 clips and of powers
    # up to 0.2. The page on tuning has all figures.
    "single": replace(
        _WHOLE["tuned"],
        proposals=replace(_WHOLE["tuned"].proposals, shortest=10.0, shortest_power=0.15),
    ),
}
"""All presets by name."""


def preset(name: str) -> RetrieverConfig:
    """Return a preset by its name.

    Raises:
        GranAlignError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise GranAlignError(
            f"preset: got {short_repr(name)}, expected one of: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def resolve_config(config: RetrieverConfig | str) -> RetrieverConfig:
    """Return a configuration as it is, and a preset for its name.

    Raises:
        GranAlignError: there is no preset of that name, or the value is neither.
    """
    if isinstance(config, RetrieverConfig):
        return config
    if isinstance(config, str):
        return preset(config)
    raise GranAlignError(
        f"config: got {short_repr(config)}, expected a RetrieverConfig or a preset's name, one of: "
        f"{', '.join(PRESETS)}"
    )
