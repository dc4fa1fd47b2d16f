"""What the second generation learns besides: to read, to spell, and facts; none asked as the nano datasets ask.

Of what ``HELD_OUT`` keeps back only the sentence is ever told, never the question about a picture.
"""

from __future__ import annotations

import random

from commit_lab.nano.pictures.facts import FACTS, HELD_OUT, PHRASES, sentence, value_of
from commit_lab.nano.pictures.nano_aokvqa import nano_aokvqa_vocabulary
from commit_lab.nano.pictures.nano_iconqa import nano_vocabulary
from commit_lab.nano.pictures.nano_text_questions import NUMBERS, WORDS
from commit_lab.nano.pictures.nano_textvqa import nano_textvqa_vocabulary
from nano_pretraining import forms
from nano_pretraining.forms import FORMS, Forms, Pair
from nano_pretraining.pages import TEXTS
from nano_pretraining.scenes import Icon, Scene

_SIDES = {"beside": ("left", "right"), "above": ("top", "bottom")}
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_FACTS = tuple((relation, thing) for relation, table in FACTS.items() for things in table.values() for thing in things)
LESSON_WORDS = " ".join(
    [
        forms.WORDS,
        "text read by spell letter first last fact so both none , : ?",
        *(f"{phrase.format('')} {value}" for relation, (_, phrase) in PHRASES.items() for value in FACTS[relation]),
        *TEXTS,
        " ".join("abcdefghijklmnopqrstuvwxyz"),
    ]
)
"""Every word of the forms of this generation besides the icons' names."""


def vocabulary() -> list[str]:
    """Return all words of the forms and of the three nano datasets of pictures."""
    return nano_vocabulary([LESSON_WORDS, *nano_textvqa_vocabulary(), *nano_aokvqa_vocabulary()])


def _texts(scene: Scene) -> list[Icon]:
    return [thing for thing in scene.icons if thing.name in TEXTS]


def _read(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    texts = _texts(scene)
    if len(texts) == 1:
        return "text :", str(texts[0].name)
    row = rng.randrange(2)
    return f"{_SIDES['above'][row]} text :", str(texts[row].name)


def _read_all(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    return "read :", " , ".join(str(thing.name) for thing in scene.icons)


def _read_one_of(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    right = str(rng.choice(_texts(scene)).name)
    pool = NUMBERS if right.isdigit() else WORDS
    shown = {thing.name for thing in scene.icons}
    options = [right, *rng.sample([text for text in pool if text not in shown], rng.randint(1, 3))]
    rng.shuffle(options)
    return f"one of {' , '.join(options)} :", right


def _letter(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    word = str(_texts(scene)[0].name)
    end = rng.randrange(2)
    return f"{('first', 'last')[end]} letter :", word[-end]


def _spell(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    """Ask for the letters of a word that is named; it needs no picture."""
    word = rng.choice(WORDS)
    if rng.random() < 0.5:
        return f"spell {word} :", " ".join(word)
    end = rng.randrange(2)
    return f"{word} : {('first', 'last')[end]} letter :", word[-end]


def _by(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    row = 2 * rng.randrange(2)
    icon, text = str(scene.icons[row].name), str(scene.icons[row + 1].name)
    return (f"by the {icon} :", text) if rng.random() < 0.7 else (f"by {text} :", icon)


def _in_colour(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    thing = rng.choice(scene.icons)
    return (f"{thing.colour} :", str(thing.name)) if rng.random() < 0.7 else (f"colour of {thing.name} ?", thing.colour)


def _fact(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    """Ask for a fact without a picture."""
    relation, concept = rng.choice(_FACTS)
    told = sentence(relation, concept).lower().removesuffix(".")
    value = str(value_of(relation, concept))
    return f"fact : {told.removesuffix(value).strip()} :", value


def _known(scene: Scene) -> list[tuple[int, str, str]]:
    """Return (place, relation, value) of every fact about an icon of the scene that may be asked for."""
    return [
        (place, relation, value)
        for place, icon in enumerate(scene.icons)
        for relation in FACTS
        if (value := value_of(relation, str(icon.name))) and (relation, icon.name) not in HELD_OUT
    ]


def _fact_shown(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    """Ask for what a relation says of the icon in a place."""
    known = _known(scene)
    if not known:
        return _fact(rng, scene, names)
    place, relation, value = rng.choice(known)
    where = {"single": ("",), "quarters": _CORNERS}.get(scene.layout) or _SIDES[scene.layout]
    return f"{where[place]} {PHRASES[relation][1].format('').strip()} :".strip(), value


def _who(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    """Ask which icon has a value, with others that have it but are not shown."""
    known = [
        (place, relation, value)
        for place, relation, value in _known(scene)
        if sum(value_of(relation, str(icon.name)) == value for icon in scene.icons) == 1
    ]
    if not known:
        return _fact_shown(rng, scene, names)
    place, relation, value = rng.choice(known)
    return f"so {PHRASES[relation][1].format(value)} :", str(scene.icons[place].name)


def _sides(rng: random.Random, scene: Scene, names: list[str]) -> Pair:
    """Ask which of two icons has a value: one, both or none."""
    known = _known(scene)
    relations = [relation for relation in FACTS if {0, 1} <= {place for place, other, _ in known if other == relation}]
    if not relations:
        return _fact_shown(rng, scene, names)
    relation = rng.choice(relations)
    values = [str(value_of(relation, str(icon.name))) for icon in scene.icons]
    value = rng.choice([*values, rng.choice(tuple(FACTS[relation]))])
    places = [side for side, found in zip(_SIDES[scene.layout], values, strict=True) if found == value]
    answer = "both" if len(places) == 2 else (*places, "none")[0]
    return f"where {PHRASES[relation][1].format(value)} :", answer


_PICTURED = [_fact, _fact_shown, _fact_shown, _who]
LESSONS: Forms = {
    **FORMS,
    "single": [*FORMS["single"], _fact, _fact_shown],
    "beside": [*FORMS["beside"], *_PICTURED, _sides, _sides],
    "above": [*FORMS["above"], *_PICTURED, _sides],
    "quarters": [*FORMS["quarters"], *_PICTURED],
    "sign": [_read, _read, _read_one_of, _letter, _letter, _spell, _read_all],
    "labels": [_read, _by, _by, _by, _read_one_of, _read_all],
    "plates": [_read, _in_colour, _in_colour, _read_one_of, _spell, _read_all],
}
"""Of the second generation, with the layouts of pages."""
