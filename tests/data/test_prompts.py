"""The words of the published prompts, and the answers that go with them."""

import pytest

from commit_tuning.data.prompts import PROMPTS, find_prompt
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError

CHOICE = Sample("1", "multiple_choice", "What is it?", ("duck", "boat"), ("boat",))
FREE = Sample("2", "direct_answer", "What {brand} is it?", None, ("nokia",))
CAPTION = Sample("3", "caption", "Please describe the audio.", None, ("rain",))
WORDS = {
    "plain": ("What is it? Options: duck, boat. Answer:", "What {brand} is it? Answer:", "boat"),
    "llava-1.5": (
        "What is it?\nA. duck\nB. boat\nAnswer with the option's letter from the given choices directly.",
        "What {brand} is it?\nAnswer the question using a single word or phrase.",
        "B",
    ),
    "instructblip": (
        "Question: What is it? Options: duck, boat. Short answer:",
        "Question: What {brand} is it? Short answer:",
        "boat",
    ),
    "salmonn": ("What is it? Options: duck, boat.", "What {brand} is it?", "boat"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_words(name: str) -> None:
    prompt = find_prompt(name)
    assert (prompt.question(CHOICE), prompt.question(FREE), prompt.answer(CHOICE)) == WORDS[name]
    assert (prompt.answer(FREE), prompt.answer(CAPTION)) == ("nokia", "rain")
    assert prompt.question(CAPTION).removesuffix(" Answer:") == CAPTION.question
    assert prompt.source


def test_answered_letter_means_the_choice_it_names() -> None:
    asked, plain = find_prompt("llava-1.5"), find_prompt("plain")
    assert [asked.meant(CHOICE, said) for said in ("B", "(a)", "B. boat", "boat", "C", "tree")] == [
        "boat",
        "duck",
        "boat",
        "boat",
        "C",
        "tree",
    ]
    assert (plain.meant(CHOICE, "B"), asked.meant(FREE, "B")) == ("B", "B")


def test_unknown_prompt() -> None:
    with pytest.raises(UserError, match="no prompt 'gpt': there are plain, "):
        find_prompt("gpt")
