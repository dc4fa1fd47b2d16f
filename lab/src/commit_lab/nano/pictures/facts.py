"""The facts that Nano-A-OKVQA assumes about the things in the icons.

Each line of a relation's table reads ``value: things``. A thing stands in a relation at most once, every value has at
least two things, and a question puts only things of one relation side by side, each false for the others' values.
Debatable facts (is a car made of metal or of glass?) are left out.
"""

from __future__ import annotations

from commit_lab.nano.pictures.concepts import CONCEPT_NAMES

_TABLES: dict[str, str] = {
    "made": """
        cloth: flag, umbrella
        glass: light bulb, magnifying glass
        metal: anchor, bell, gear, key, lock, scissors, shopping cart, trophy
        paper: envelope, puzzle piece
        water: cloud, drop
    """,
    "found": """
        body: eye, heart
        castle: crown, ghost
        door: bell, key, lock
        garden: bug, leaf
        sky: airplane, cloud, lightning, moon, star, sun
        street: car, trash
    """,
    "used": """
        light: fire, light bulb
        locking: key, lock
        seeing: eye, magnifying glass
        shelter: house, umbrella
        sound: bell, headphones
        travel: airplane, car
    """,
    "kind": """
        container: envelope, gift, trash
        device: camera, clock, headphones
        organ: eye, heart
        signal: bell, flag, wifi
        tool: magnifying glass, scissors
        vehicle: airplane, car
        weather: cloud, lightning, sun
    """,
    "goes": """
        games: puzzle piece, trophy
        night: moon, star
        parties: gift, music
        rain: cloud, drop, lightning, umbrella
        trips: airplane, car, globe
    """,
    "has": """
        hands: clock, user
        lenses: camera, eye, magnifying glass
        points: crown, star
        wheels: car, shopping cart
    """,
}
PHRASES: dict[str, tuple[str, str]] = {
    "made": ("What is the object {} made of?", "is made of {}"),
    "found": ("Where would you find the object {}?", "belongs to the {}"),
    "used": ("What is the object {} used for?", "is used for {}"),
    "kind": ("What kind of thing is the object {}?", "is a kind of {}"),
    "goes": ("What does the object {} go with?", "goes with {}"),
    "has": ("What does the object {} have?", "has {}"),
}
"""Relation -> its question about a place, and what is said of a thing."""

_SAID = """
airplane: plane, aeroplane, jet
bug: insect, beetle
car: automobile, auto
castle: palace, fort
cloth: fabric, textile, nylon
container: box, holder
device: gadget, machine, electronics
door: entrance, front door
drop: water drop, raindrop
envelope: letter, mail
fire: flame
games: game, play, winning
garden: yard, outside, plants
gift: present
glass: bulb glass, crystal
globe: earth, world
heart: love
house: home
lenses: lens, glass
light: lighting, brightness
lightning: bolt, flash
locking: lock, security, safety
magnifying glass: magnifier, lens
metal: steel, iron
music: note, song
night: nighttime, dark
organ: body part, body parts
paper: cardboard, card
parties: party, birthday
puzzle piece: puzzle, jigsaw
rain: rainy, wet weather
seeing: vision, looking, sight
shelter: cover, protection
shopping cart: cart, trolley
signal: sign, alert
sky: air, outside, in sky
sound: noise, hearing
street: road, city
tool: instrument, tools
trash: bin, trash can, garbage
travel: traveling, flying, transportation
trips: trip, vacation, travel
trophy: cup, prize
user: person, man
vehicle: transport, transportation
water: liquid, rain
weather: climate, storm
wheels: wheel, tires
wifi: internet, signal
"""


def _read(text: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(":") for line in text.strip().splitlines())
    return {key.strip(): tuple(word.strip() for word in words.split(",")) for key, words in pairs}


FACTS: dict[str, dict[str, tuple[str, ...]]] = {relation: _read(table) for relation, table in _TABLES.items()}
"""Relation -> value -> the concepts of which it is true, sorted."""

ALSO_SAID: dict[str, tuple[str, ...]] = _read(_SAID)
"""Value or concept -> what some people say instead."""

VALUES: tuple[tuple[str, str], ...] = tuple((relation, value) for relation, table in FACTS.items() for value in table)
"""Every relation with every of its values."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (relation, FACTS[relation][value][len(FACTS[relation][value]) // 2])
    for relation, value in VALUES
    if len(FACTS[relation][value]) > 2
)
"""(relation, concept): the middle concept of every value of three or more. Train never asks for that value of it."""


def value_of(relation: str, concept: str) -> str | None:
    """Return what a relation says of a concept; None if it says nothing."""
    return next((value for value, things in FACTS[relation].items() if concept in things), None)


def sentence(relation: str, concept: str) -> str:
    """Put a fact into words, such as ``The key is made of metal.``, for reasons and for pre-training."""
    return f"The {concept} {PHRASES[relation][1].format(value_of(relation, concept))}."


def known_concepts() -> tuple[str, ...]:
    """Return the concepts with a fact, sorted."""
    found = {thing for table in FACTS.values() for things in table.values() for thing in things}
    return tuple(concept for concept in CONCEPT_NAMES if concept in found)
