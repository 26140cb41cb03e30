"""Vocabulary of the miniatures' language: for every meaning a common word, and rare ones."""

from __future__ import annotations

from .scenes import SHAPES, WORDS

# The first expression is the common one, which captions and rewrites use.
SAYINGS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "orb", "roundel"),
    "square": ("square", "box", "block", "tile"),
    "triangle": ("triangle", "wedge", "trigon", "delta"),
    "star": ("star", "pentagram", "asterisk", "starburst"),
    "cross": ("cross", "crucifix", "rood", "saltire"),
    "ring": ("ring", "hoop", "annulus", "torus"),
    "red": ("red", "crimson", "scarlet", "vermilion"),
    "green": ("green", "emerald", "viridian", "verdant"),
    "blue": ("blue", "azure", "cobalt", "sapphire"),
    "yellow": ("yellow", "golden", "lemon", "canary"),
    "orange": ("orange", "tangerine", "apricot", "saffron"),
    "purple": ("purple", "violet", "amethyst", "mauve"),
    "white": ("white", "ivory", "snowy", "alabaster"),
    "black": ("black", "ebony", "inky", "sable"),
    "gray": ("gray", "ashen", "slate", "leaden"),
    "brown": ("brown", "umber", "chestnut", "russet"),
    "pink": ("pink", "rosy", "fuchsia", "salmon"),
    "cyan": ("cyan", "turquoise", "teal", "aqua"),
    "olive": ("olive", "khaki", "moss", "drab"),
    "lines": ("with lines", "with stripes", "with bands"),
    "spots": ("with spots", "with dots", "with speckles"),
    "tiny": ("tiny", "small", "little", "petite"),
    "giant": ("giant", "large", "huge", "massive"),
    "two": ("two", "a pair of", "a couple of"),
    "three": ("three", "a trio of", "a threesome of"),
    "top left": ("at the top left", "in the upper left corner"),
    "top right": ("at the top right", "in the upper right corner"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
    "sign": ("sign", "placard", "notice", "signboard"),
    "that says": ("that says", "reading", "with the word"),
    "background": ("background", "backdrop", "ground", "surface"),
    "moving": ("moving", "drifting", "gliding", "floating", "hovering"),
    "after": ("after", "following", "just past"),
    "before": ("before", "ahead of", "prior to"),
    "and": ("and", "beside", "alongside", "with", "near"),
}
LEADS = ("", "find", "show me", "the part with", "a scene with", "look for", "where is")
ENTITIES_LABEL, ACTIONS_LABEL = "entities :", "actions :"
NUMBERS = {2: "two", 3: "three"}


def article(word: str) -> str:
    """Return the article before a word: ``a`` or ``an``."""
    return "an" if word[0] in "aeio" else "a"


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    irregular = {"annulus": "annuli", "torus": "tori"}
    return irregular.get(noun) or noun + ("es" if noun.endswith(("s", "x")) else "s")


def vocabulary() -> list[str]:
    """Return every word that captions, queries and rewrites may contain, sorted."""
    shapes = [word for shape in SHAPES for word in SAYINGS[shape]]
    texts = [saying for sayings in SAYINGS.values() for saying in sayings]
    texts += [*map(plural, shapes), *LEADS, *WORDS, ENTITIES_LABEL, ACTIONS_LABEL]
    texts.append("a an on over against , . a frame with a video of moving at the")
    return sorted({word for text in texts for word in text.split()})
