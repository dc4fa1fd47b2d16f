"""The concepts that Nano-IconQA asks about, and the drawing names each icon family uses for them.

Each line of the table reads ``concept: drawing names``; a drawing name is a glyph's name in a font's charmap without
its weight and fill (see :func:`.icons.style_free`), and ``family!name`` holds for that family alone.
Concepts that families draw in unlike ways, that cannot be told apart at about 20 pixels, or that are mere text
formatting are not in the table. Forty are few enough for models of a million parameters.
"""

from __future__ import annotations

_TABLE = """
airplane: plane airplane airplane-tilt plane-up
anchor: anchor anchor-simple
bell: bell bell-simple ri!notification-2 ri!notification-3 ri!notification-4
bug: bug bug-2 bug-beetle
camera: camera camera-3 device-camera
car: car car-side car-simple
clock: clock time
cloud: cloud
crown: crown vip-crown crown-simple
drop: drop tint droplet mdi!water
envelope: envelope mail email envelope-simple
eye: eye eye-open
fire: fire flame
flag: flag flag-2
gear: gear cog settings-gear
ghost: ghost ghost-2
gift: gift gift-2
globe: globe global earth globe-simple web
headphones: headphones headphone headphones-simple headphones-alt
heart: heart heart-2 heart-3 heart-straight
house: house home house-simple house-chimney home-simple home-2 home-3 home-4 home-5 home-7
key: key key-2
leaf: leaf
light bulb: lightbulb light-bulb bulb lightbulb-filament idea
lightning: lightning bolt lightning-bolt zap mdi!flash ri!flashlight bolt-lightning
lock: lock lock-2 lock-simple
magnifying glass: search search-2 magnifying-glass magnify
moon: moon moon-clear weather-night moon-waning-crescent
music: music music-2 music-note music-notes music-note-simple music-notes-simple
puzzle piece: puzzle puzzle-piece
scissors: scissors scissors-2 cut content-cut
shopping cart: shopping-cart shopping-cart-2 cart cart-shopping shopping-cart-simple
smiley: smiley emotion smile emoticon-happy face-smile emoticon emotion-happy
star: star star-full
sun: sun white-balance-sunny
trash: trash trash-can delete-bin delete-bin-2 delete-bin-5 delete-bin-6 trashcan mdi!delete trash-simple trash-alt
trophy: trophy
umbrella: umbrella umbrella-simple
user: user user-3 mdi!account msc!account
wifi: wifi wifi-high
"""


def parse_table(text: str) -> dict[str, tuple[str, ...]]:
    """Read the table: one concept per line, ``concept: name name ...``; returns concept -> names, sorted."""
    table: dict[str, tuple[str, ...]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        concept, _, names = line.partition(":")
        table[concept.strip()] = tuple(names.split())
    return dict(sorted(table.items()))


CONCEPT_NAMES: dict[str, tuple[str, ...]] = parse_table(_TABLE)
"""Concept -> the base names (optionally ``family!name``) that draw it."""
