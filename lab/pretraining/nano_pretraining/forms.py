"""Texts for pre-training: captions and short questions about a scene, none in a form that Nano-IconQA uses."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

from nano_pretraining.scenes import COLOURS, Icon, Scene

Pair = tuple[str, str]
"""Prompt and answer."""

Forms = dict[str, list[Callable[[random.Random, Scene, list[str]], Pair]]]
"""Layout -> what may be asked about a scene; a form that comes twice is asked twice as often."""

_ENDING = " answer :"
_WORDINGS = (
    "where is the {} ?",
    "which side shows the {} ?",
    "see the {} : it is at the",
    "in this drawing the {} is on the",
    "the picture that contains the {} is the",
    "icon of the {} : where ?",
)
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_SIDES = {"beside": ("left", "right"), "above": ("top", "bottom")}
WORDS = (
    "caption : a and , . or is there the ? yes no where colour of tally total list one with are in both answer "
    "top bottom left right a b c d " + " ".join(map(str, range(10))) + " " + " ".join(COLOURS)
)
"""Every word of the forms besides the icons' names."""


def chatter_words(vocabulary: list[str], names: list[str], asked: str) -> list[str]:
    """Return words that say nothing about a picture or sound: neither names nor words of the forms."""
    said = {*asked.split(), *" ".join(names).split()}
    return [word for word in vocabulary if word not in said]


def with_chatter(rng: random.Random, pairs: list[Pair], words: list[str]) -> list[Pair]:
    """Return the same pairs in other wordings, with up to six filler words before each prompt and before its end."""
    longer = []
    for prompt, answer in pairs:
        head = _reworded(rng, prompt.removesuffix(_ENDING))
        before, after = (" ".join(rng.choices(words, k=rng.randint(0, 6))) for _ in range(2))
        longer.append((" ".join(filter(None, (before, head, after))) + _ENDING, answer))
    return longer


def _reworded(rng: random.Random, prompt: str) -> str:
    """Ask a question for a place in one of several ways, sometimes with all places listed."""
    found = re.fullmatch(r"where is the (.+) \?", prompt)
    if found is None:
        return prompt
    places = f" {' , '.join(_CORNERS)} ." if rng.random() < 0.5 else ""
    return rng.choice(_WORDINGS).format(found[1]) + places


def make_pairs(rng: random.Random, scene: Scene, names: list[str], number: int, forms: Forms) -> list[Pair]:
    """Make different prompts about one scene, each with its answer.

    Args:
        rng: Source of chance.
        scene: What is shown; every icon has a name.
        names: All names, for options and questions about what is absent.
        number: How many pairs at most.
        forms: What may be asked: :data:`FORMS`, or more.
    """
    chosen = rng.sample(forms[scene.layout], min(number, len(forms[scene.layout])))
    return [(f"{prompt}{_ENDING}", answer) for prompt, answer in (form(rng, scene, names) for form in chosen)]


def _name(icon: Icon) -> str:
    return str(icon.name)


def _absent(rng: random.Random, scene: Scene, names: list[str], number: int) -> list[str]:
    shown = {icon.name for icon in scene.icons}
    return rng.sample([name for name in rng.sample(names, 20) if name not in shown], number)


def _caption(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    groups = Counter((icon.colour, _name(icon)) for icon in scene.icons)
    parts = [f"{count} {colour} {name}" for (colour, name), count in groups.items()]
    return "caption :", " , ".join(parts[:3])


def _name_one(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    return f"a {scene.icons[0].colour} :", _name(scene.icons[0])


def _one_of(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    right = _name(rng.choice(scene.icons))
    options = [right, *_absent(rng, scene, names, rng.randint(1, 3))]
    rng.shuffle(options)
    return f"one of {' , '.join(options)} :", right


def _is_there(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    if rng.random() < 0.5:
        return f"is there a {_name(rng.choice(scene.icons))} ?", "yes"
    return f"is there a {_absent(rng, scene, names, 1)[0]} ?", "no"


def _colour_of(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    icon = rng.choice(scene.icons)
    colours = {other.colour for other in scene.icons if other.name == icon.name}
    if len(colours) > 1:
        return _is_there(rng, scene, names)
    return f"colour of the {_name(icon)} ?", icon.colour


def _tally(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    groups = Counter(_name(icon) for icon in scene.icons)
    name = rng.choice(sorted(groups))
    return f"tally : {name} :", str(groups[name])


def _tally_colour(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    groups = Counter(icon.colour for icon in scene.icons)
    colour = rng.choice(sorted(groups))
    return f"tally : {colour} :", str(groups[colour])


def _total(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    return "total :", str(len(scene.icons))


def _inventory(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    groups = Counter(_name(icon) for icon in scene.icons)
    return "list :", " , ".join(f"{count} {name}" for name, count in groups.most_common(3))


def _two_sides(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    sides = _SIDES[scene.layout]
    return "list :", " , ".join(f"{side} {_name(icon)}" for side, icon in zip(sides, scene.icons, strict=True))


def _where(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    places = _CORNERS if scene.layout == "quarters" else _SIDES[scene.layout]
    place = rng.randrange(len(places))
    name = _name(scene.icons[place])
    if sum(icon.name == name for icon in scene.icons) > 1:
        return _is_there(rng, scene, names)
    return f"where is the {name} ?", places[place]


def _at(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    places = _CORNERS if scene.layout == "quarters" else _SIDES[scene.layout]
    place = rng.randrange(len(places))
    return f"{places[place]} :", _name(scene.icons[place])


def _letters(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    return "list :", " , ".join(f"{letter} {_name(icon)}" for letter, icon in zip("abcd", scene.icons, strict=True))


FORMS: Forms = {
    "single": [_caption, _name_one, _one_of, _is_there],
    "beside": [_two_sides, _at, _at, _where, _one_of, _caption, _colour_of],
    "above": [_two_sides, _at, _at, _where, _one_of, _caption, _colour_of],
    "quarters": [_letters, _at, _where, _where, _where, _one_of, _is_there, _colour_of],
    "scatter": [_inventory, _tally, _tally, _tally_colour, _total, _is_there, _caption],
}
"""Of the first generation."""
