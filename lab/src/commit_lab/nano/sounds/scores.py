"""Scores of the corpus that the package music21 carries: melodies in ABC, chorales in MusicXML.

Only the files are read. music21 itself is not imported, because only key, metre, kind and notes of a piece are needed.
The sources are O'Neill's *Music of Ireland*, *Ryan's Mammoth Collection* and J. S. Bach's chorales. Their music is in
the public domain, and their encodings carry no restriction.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from commit_lab.nano.building import package_folder

CHORALE, TUNE = "chorale", "tune"
METRES = {
    "2/4": "two four",
    "3/4": "three four",
    "4/4": "four four",
    "C": "four four",
    "C|": "four four",
    "6/8": "six eight",
}
"""Metres that are taken, in words; cut time counts as four four, for it sounds so."""

MODES = ("major", "minor")
KINDS = ("reel", "jig", "hornpipe", "strathspey", "clog", "march", "waltz", "air", TUNE, CHORALE)
_KIND = re.compile(rf"\b({'|'.join(KINDS[:-2])})\b")
_STEPS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
_ORDER = "FCGDAEB"
_NOISE = re.compile(r'%.*|"[^"]*"|![^!]*!|\{[^}]*\}|\[[A-Za-z]:[^\]]*\]|\[\d[\d,]*|^[A-Zw]:(?![|:]).*$', re.MULTILINE)
_CHORD = re.compile(r"\[[^\]|:]*?((?:[_=]|\^)*[A-Ga-g][,']*\d*/*\d*)\]")  # its last note is kept
_TOKEN = re.compile(
    r"(?P<tuplet>\(\d)(?::\d*)*|(?P<bar>[|\]:]*\|[|\]:\d]*)|(?P<broken>[<>]+)"
    r"|(?P<sign>\^{1,2}|_{1,2}|=)?(?P<note>[A-Ga-gzx])(?P<octave>[,']*)(?P<length>\d*/*\d*)(?P<tie>-?)"
)
_TUPLETS = {2: (3, 2), 3: (2, 3), 4: (3, 4), 6: (2, 6)}  # ABC 2.1, section 4.13: so many in the time of so many


class Tone(NamedTuple):
    """A note of a score: start and length in quarters (or in the tune's unit), MIDI key."""

    start: Fraction
    length: Fraction
    key: int


@dataclass(frozen=True)
class Score:
    """What is played.

    Attributes:
        voices: From the highest down; each in order of time.
        bars: Where bars begin.
    """

    voices: tuple[tuple[Tone, ...], ...]
    bars: tuple[Fraction, ...]


@dataclass(frozen=True)
class Piece:
    """A piece of music before its notes are read.

    Attributes:
        name: Its title, or number in Bach's catalogue; lower case letters and digits. Versions of a tune share it.
        kind: One of :data:`KINDS`.
        mode: One of :data:`MODES`.
        metre: In words, such as "six eight".
        text: The ABC text, or the path of the MusicXML file.
    """

    name: str
    kind: str
    mode: str
    metre: str
    text: str


@lru_cache(maxsize=1)
def pieces() -> tuple[Piece, ...]:
    """Return every piece with a clear mode and metre, in a fixed order.

    Raises:
        UserError: music21 is not installed.
    """
    corpus = package_folder("music21", "corpus", "nano-audio", "whose scores are the music of Nano-SDD")
    tunes = [
        piece
        for folder in ("oneills1850", "ryansMammoth")
        for path in sorted((corpus / folder).glob("*.abc"))
        for tune in re.split(r"(?m)^(?=X:)", path.read_text("utf-8", errors="replace"))[1:]
        if (piece := _tune(tune)) is not None
    ]
    chorales = [piece for path in sorted((corpus / "bach").glob("*.mxl")) if (piece := _chorale(path)) is not None]
    return (*tunes, *chorales)


@lru_cache(maxsize=256)
def read_score(piece: Piece) -> Score:
    """Read the notes of a piece."""
    return _chorale_score(Path(piece.text)) if piece.kind == CHORALE else _abc_score(piece.text)


def _tune(text: str) -> Piece | None:
    fields = {name: re.findall(rf"(?m)^{name}:\s*(.*?)\s*$", text) for name in "TRMKV"}
    if fields["V"] or not fields["T"] or len(fields["M"]) != 1 or len(fields["K"]) != 1:
        return None  # several voices, or a change of metre or key
    plain = re.fullmatch(r"[A-G][b#]?\s*(?:(m|min|minor)|(M|maj|major)?)", fields["K"][0], re.IGNORECASE)
    if plain is None or fields["M"][0] not in METRES:
        return None
    kinds = _KIND.findall(" ".join(fields["T"] + fields["R"]).lower())
    name = re.sub(r"[^a-z0-9]", "", re.split(r" -- |,", fields["T"][0].lower())[0].removeprefix("the "))
    mode = "minor" if _is_minor(fields["K"][0]) else "major"
    return Piece(name, kinds[-1] if kinds else TUNE, mode, METRES[fields["M"][0]], text)


def _abc_score(text: str) -> Score:
    """Read one voice of an ABC tune, without repeats; lengths are in the tune's unit."""
    key, _, body = text.partition("\nK:")[2].partition("\n")
    signature = _signature(key.strip())
    here = dict(signature)
    now, tones, bars = Fraction(0), list[Tone](), [Fraction(0)]
    left, ratio, stretch = 0, Fraction(1), Fraction(1)
    tied = False
    for token in _TOKEN.finditer(_CHORD.sub(r"\1", _NOISE.sub(" ", body))):
        if token["tuplet"]:
            count = int(token["tuplet"][1])
            time, left = _TUPLETS.get(count, (2, count))
            ratio = Fraction(time, count)
        elif token["bar"]:
            here = dict(signature)
            if now > bars[-1]:
                bars.append(now)
        elif token["broken"] and tones:
            part = Fraction(1, 2 ** len(token["broken"]))
            first, stretch = (2 - part, part) if token["broken"][0] == ">" else (part, 2 - part)
            last = tones[-1]
            now += last.length * (first - 1)
            tones[-1] = last._replace(length=last.length * first)
        elif token["note"]:
            length = _length(token["length"]) * stretch * (ratio if left else 1)
            left, stretch = max(0, left - 1), Fraction(1)
            step = token["note"].upper()
            if step in _STEPS:
                if token["sign"]:
                    here[step] = token["sign"].count("^") - token["sign"].count("_")
                octave = 5 + token["note"].islower() + token["octave"].count("'") - token["octave"].count(",")
                pitch = 12 * octave + _STEPS[step] + here[step]
                if tied and tones[-1].key == pitch:
                    tones[-1] = tones[-1]._replace(length=tones[-1].length + length)
                else:
                    tones.append(Tone(now, length, pitch))
            tied = bool(token["tie"]) and step in _STEPS
            now += length
    return Score((tuple(tones),), tuple(bars))


def _is_minor(key: str) -> bool:
    """Tell whether a key in ABC notation is minor."""
    return re.match(r"[A-G][b#]?\s*(m\b|[mM]in)", key) is not None


def _signature(key: str) -> dict[str, int]:
    """Return the sharps (1) and flats (-1) of a key by step."""
    sharps = _ORDER.index(key[0]) - 1 + 7 * ((key[1:2] == "#") - (key[1:2] == "b"))
    if _is_minor(key):
        sharps -= 3
    raised, lowered = _ORDER[: max(0, sharps)], _ORDER[::-1][: max(0, -sharps)]
    return {step: (step in raised) - (step in lowered) for step in _STEPS}


def _length(text: str) -> Fraction:
    """Read an ABC length: "3", "/", "//", "3/2"."""
    top, slashes, bottom = text.partition("/")
    below = int(bottom) if bottom.isdigit() else 2 ** (1 + bottom.count("/")) if slashes else 1
    return Fraction(int(top or 1), below)


def _xml(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".xml") and not name.startswith("META-INF")]
        return archive.read(names[0]).decode("utf-8") if names else ""


def _chorale(path: Path) -> Piece | None:
    text = _xml(path)
    modes, beats = set(re.findall(r"<mode>(\w+)<", text)), set(re.findall(r"<beats>(\d+)<", text))
    metre = METRES.get(f"{min(beats)}/4") if len(beats) == 1 else None
    plain = len(modes) == 1 and len(set(re.findall(r"<fifths>(.*?)<", text))) == 1 and "<beat-type>4<" in text
    if not plain or metre is None or text.count("<part id") != 4 or not modes <= set(MODES):
        return None
    return Piece(path.stem, CHORALE, min(modes), metre, str(path))


def _chorale_score(path: Path) -> Score:
    """Read four voices of a chorale; lengths are in quarters."""
    voices, bars = [], [Fraction(0)]
    for part in ElementTree.fromstring(_xml(path)).iter("part"):
        now, divisions, tones = Fraction(0), 1, list[Tone]()
        starts = list[Fraction]()
        for measure in part.iter("measure"):
            starts.append(now)
            divisions = int(measure.findtext("attributes/divisions") or divisions)
            for note in measure.iter("note"):
                length = Fraction(int(note.findtext("duration") or 0), divisions)
                step = note.findtext("pitch/step")
                if step is not None and note.find("chord") is None and note.find("grace") is None:
                    alter = int(note.findtext("pitch/alter") or 0)
                    key = 12 * (1 + int(note.findtext("pitch/octave") or 4)) + _STEPS[step] + alter
                    if any(tie.get("type") == "stop" for tie in note.findall("tie")) and tones:
                        tones[-1] = tones[-1]._replace(length=tones[-1].length + length)
                    else:
                        tones.append(Tone(now, length, key))
                now += length if note.find("chord") is None else 0
        voices.append(tuple(tones))
        bars = starts
    return Score(tuple(voices), tuple(bars))
