"""The constants by which candidate moments are cut out of curves and scored."""

from __future__ import annotations

from dataclasses import dataclass

from .smoothing import check_sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRules:
    """How candidates are cut out of the curves and scored. Lengths are in clips.

    Raises:
        ValueError: a value is out of its range.
    """

    sigma: float = 0.0
    """Gaussian that smooths every curve; 0 leaves it as it is."""
    stretch: bool = True
    """Rescale every smoothed curve to [0, 1] before its threshold and its means."""
    variants: bool = False
    """Candidates from each variant's own curve too, not just from the fused one."""
    high_factor: float = 0.0
    """Otsu once more among the clips above the threshold gives the cores of runs; this is what
    their scores are multiplied with. 0 for none."""
    low_factor: float = 0.0
    """Otsu once more among the clips below gives runs with their surroundings; likewise."""
    fine_sigma: float = 0.0
    """Gaussian of a second cut of the fused curve, whose runs can be shorter; 0 smooths nothing."""
    fine_factor: float = 0.0
    """The factor of the scores of the second cut's runs. 0 for no second cut."""
    gap: int = 0
    """Runs of high-scoring clips join over at most this many low ones (the paper's tau)."""
    drop: float = 0.0
    """Share of a pair's candidates that go, those of the lowest fused mean (the paper's n%)."""
    own_share: float = 0.0
    """mu is the fused curve's mean over the run, but for this share, which is the mean of the
    curve that the run was cut from."""
    length_weight: float = 0.3
    """The paper's lambda."""
    shortest: float = 1.0
    """The shortest length that a wanted moment usually has."""
    shortest_power: float = 0.0
    """A shorter run's score is multiplied with its length over `shortest`, raised to this power. 0
    leaves the scores as they are."""

    def __post_init__(self) -> None:
        check_sigma("sigma", self.sigma)
        check_sigma("fine_sigma", self.fine_sigma)
        if self.gap < 0:
            raise ValueError(f"gap: got {self.gap}, expected 0 clips or more")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: got {self.drop}, expected a share of at least 0 and below 1")
        for name in ("high_factor", "low_factor", "fine_factor", "own_share", "length_weight"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected 0 to 1")
        if not 1 <= self.shortest <= 1e6:
            raise ValueError(f"shortest: got {self.shortest}, expected 1 to 1e6 clips")
        if not 0 <= self.shortest_power <= 1:
            raise ValueError(f"shortest_power: got {self.shortest_power}, expected 0 to 1")

    @property
    def factors(self) -> tuple[float, float, float]:
        """The factors of the score at the main, the high and the low threshold."""
        return 1.0, self.high_factor, self.low_factor

    @property
    def fine_factors(self) -> tuple[float, float, float]:
        """The same for the runs of the second cut."""
        main, high, low = self.factors
        return main * self.fine_factor, high * self.fine_factor, low * self.fine_factor

    def length_factor(self, length: int) -> float:
        """Return the factor of the score of a run of so many clips, besides its level's."""
        return float(min(length / self.shortest, 1.0) ** self.shortest_power)
