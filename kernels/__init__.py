"""Batched kernels: from embeddings to ranked moments, on NumPy or, with CuPy arrays, on a GPU.

Each family is a ``name.py`` with the public function and its NumPy twin, and a ``name.cu``. They
chain without a copy or a wait: `context` once for a video, then `similarity`, `feedback`,
`similarity` again, `proposals`, `nms`. A `Ranking` is that chain with all its memory, for one set
of videos and any number of calls. `corpus` stands apart: it finds the clips of a whole library that
are nearest to a query.
"""

from __future__ import annotations

from .context import ContextRules, context
from .corpus import Top, corpus
from .corpus_codes import Codes, code_blocks, code_range, make_codes
from .feedback import FeedbackRules, Moved, feedback, refined_curves
from .nms import Ranked, nms
from .proposal_rules import ProposalRules
from .proposals import Proposals, proposals
from .ranking import Ranking, RankingRules, mixed_rows, warm_up
from .similarity import Curves, similarity

__all__ = [
    "Codes",
    "ContextRules",
    "Curves",
    "FeedbackRules",
    "Moved",
    "ProposalRules",
    "Proposals",
    "Ranked",
    "Ranking",
    "RankingRules",
    "Top",
    "code_blocks",
    "code_range",
    "context",
    "corpus",
    "feedback",
    "make_codes",
    "mixed_rows",
    "nms",
    "proposals",
    "refined_curves",
    "similarity",
    "warm_up",
]
