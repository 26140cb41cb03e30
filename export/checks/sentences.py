"""Fixed texts: one list to compare exports on, another to measure int8 ranges on."""

from __future__ import annotations

from itertools import product

_OVER_LONG = (
    "The camera follows the cyclist down the hill, past the bakery, over the bridge and along the "
    "river until the road turns away from the water and climbs again. "
)

VALIDATION: tuple[str, ...] = (
    "Run.",
    "cat",
    "A man.",
    "two dogs",
    "Who is it?",
    "A woman opens a red umbrella.",
    "A man in a blue shirt is driving a car",
    "A child blows out the candles on a birthday cake.",
    "The chef drops the pan, and everyone laughs!",
    "Close-up of hands kneading dough on a floured table.",
    "An empty street at night; rain falls on the neon signs.",
    "Somebody falls off a skateboard, gets up, and tries again.",
    "very very very very very fast",
    "the the the the the the the the",
    "GOAL!!! The crowd goes wild!!!",
    "She said: \"Don't touch that (it's hot)!\"",
    "He's wearing a T-shirt that reads 'C:\\temp & co.'",
    "Meet me at 10:45 p.m. on 3/14/2021, gate B-12.",
    "The bill comes to $1,299.99 (incl. 19% VAT).",
    "user@example.org -> https://example.org/watch?v=a1_b2&t=90s",
    "for i in range(10): print(i ** 2)  # squares",
    "A café in Zürich serves crème brûlée and jalapeño soup.",
    "Ein Mädchen springt über die Pfütze.",
    "El perro corre detrás de la pelota roja.",
    "東京タワーの前で写真を撮る二人",
    "Два человека играют в шахматы в парке.",
    "رجل يقود سيارة في الصحراء",
    "🎉🎉 party time 🎂 with friends 😂",
    "naïve façade — coöperate… “quoted” ‘text’",
    "tab\tseparated\nand broken\r\nover lines",
    "   leading and trailing spaces   ",
    "pneumonoultramicroscopicsilicovolcanoconiosis and antidisestablishmentarianism",
    "qwrtzpsdf xkcdvbnm hjklqq",
    "?!",
    "A view of a lush green forest with trees and a foggy sky in the background.",
    "A reporter stands in front of the courthouse and explains what the ruling means for tenants.",
    "Two women in white coats look through a microscope, take notes, and then discuss the sample "
    "while a third person films them from the other side of the glass.",
    "First the vlogger packs her suitcase, then she takes a taxi to the airport, where she buys a "
    "coffee, waits at the gate, boards the plane and finally falls asleep by the window.",
    _OVER_LONG * 3,
    _OVER_LONG * 20,
)
"""Forty texts to compare exports on: from one word to far beyond any model's limit, in several
scripts."""

_SUBJECTS = (
    "A young woman in a black jacket",
    "An old man with a white beard",
    "The host of the cooking show",
    "A group of tourists",
    "A brown dog",
    "Someone wearing gloves",
)
_ACTIONS = (
    "is talking to the camera",
    "looks out of the window and smiles",
    "prepares a meal with vegetables and rice",
    "walks slowly through a crowded market",
    "sits in the passenger seat of a car",
    "points at a map on a large screen",
)
_PLACES = (
    ".",
    " while it is raining outside.",
    " in front of a mountain with snow on its peak, and a boat passes in the background.",
)
_OTHERS = (
    "hello",
    "no",
    "A screenshot of a video game with a score of 42 to 7.",
    "What is the speaker holding in the left hand?",
    "Breaking news: the parliament voted 312-298 against the bill on Tuesday evening.",
    "Mix 200 g of flour, 3 eggs & a pinch of salt; bake at 180 °C for 25-30 min.",
    "The mitochondria produce most of the chemical energy that a cell needs.",
    "def area(r): return 3.14159 * r * r",
    "In 1969, Neil Armstrong and Buzz Aldrin walked on the Moon.",
    "Stock prices fell by 4.7% after the quarterly report of the company disappointed investors.",
    "La vie est belle, n'est-ce pas ?",
    "Der Zug nach München fährt heute von Gleis 7.",
    "La niña abre el regalo y grita de alegría.",
    "彼女は駅で友達を待っている。",
    "Кошка спит на диване.",
    "한국 음식은 맛있다",
    "#travel #vlog @friend — day 3!!",
    "A logo, a title card, the end credits.",
    "blurry",
    "The text on the sign says SALE 50% OFF, and a woman with sunglasses walks past it.",
    "no no no no no no no no no no no no",
    "... --- ... !!! ??? ((())) [[[ ]]] ;;; :::",
    "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181",
    "http://example.com/a/b/c?d=e&f=g#h or write to nobody@example.net",
    "zxcv qwop jklm blorp snarfle wibblewobble",
    "Honorificabilitudinitatibus!",
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY name;",
    "وصل القطار إلى المحطة في الصباح",
    "🐶🐱🐭 ❤️ 100%",
    "Once upon a time there was a fox who lived under an old oak tree. " * 4,
    "The committee met at noon, discussed the budget, and postponed the vote; afterwards the "
    "chairwoman told reporters that, although nothing had been decided, progress was being made. "
    * 12,
    "tick tock " * 300,
)

CALIBRATION: tuple[str, ...] = _OTHERS + tuple(
    f"{who} {does}{where}" for who, does, where in product(_SUBJECTS, _ACTIONS, _PLACES)
)
"""Texts to measure int8 activation ranges on; `VALIDATION` shares no sentence with them."""
