"""Vision, audio, language under one coordinator: `python lab/benchmarks/three_modalities.py --output runs/three`.

A nano model is joined from parts of the shipped ones: tower, projector and language model of nano LLaVA, the two audio
encoders and the Q-Former of nano SALMONN. The projection from the Q-Former to the language model is fresh, and so are
the embeddings for the words of sounds. All parts are trained in full. Every item has a picture (one or two icons) and a
sound (one instrument), and its
question asks for the icon, for the instrument, or for both: which of two sides to look at depends on what is heard.
Drawings of the test items are not among those of the training; instruments are the same, in other melodies. Kappa has
one value for each encoder. Prints Markdown.
"""

import argparse
import random
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from arms import add_options
from course import Batch, Subject, run_all, teacher_forced
from stop_table import stop_table
from tokenizers import AddedToken
from torch import Tensor, nn

from commit_lab.nano.models.build import IMAGE, INIT
from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.painter import Painter
from commit_lab.nano.sounds.sound_concepts import INSTRUMENTS, Player
from commit_lab.nano.sounds.soundfont import RATE
from commit_tuning import ModulePartition, partition_model
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.models.load import load_model
from commit_tuning.partition.modules import LANGUAGE_MODEL
from commit_tuning.train.dataset import chunks, data_order

ARMS = ["constant:1e-4", "constant:3e-4", "constant:1e-3", "default:1e-3", "literal-clr:3e-4"]
KINDS = ("picture", "sound", "both")
BATCH, AT_ONCE, SECONDS, OPTIONS = 16, 100, 3.0, 4
HEAR = "<audio>"
COLUMNS = {
    f"{kind}: {name}": (f"{name} {kind}", form)
    for kind in KINDS
    for name, form in (("accuracy", ".1f"), ("loss", ".3f"))
}
COLUMNS |= {f"kappa of {name}": (f"kappa/{name}", ".2g") for name in ("vision", "audio")}
COLUMNS |= {f"log-sd, {name}": (f"spread_kappa/{name}", ".2f") for name in ("vision", "audio")}
COLUMNS |= {f"drift of {name}": (f"drift/{name}", ".1e") for name in (LANGUAGE_MODEL, "vision", "audio")}
COLUMNS |= {f"rate of {name}": (f"lr/{name}", ".1e") for name in (LANGUAGE_MODEL, "vision", "audio")}
SIDES = {"left": (0, 0, 32, 64), "right": (32, 0, 32, 64)}


def main() -> None:
    """Make the items, run every arm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listener", default="nano-salmonn", help="a nano name or a folder, whose audio path is taken")
    parser.add_argument("--train", type=int, default=3000, help="items to train on")
    parser.add_argument("--test", type=int, default=600, help="items to test on")
    add_options(parser, ARMS, [100, 400, 1200], [0, 1])
    arguments = parser.parse_args()
    counts = {"train": arguments.train, "test": arguments.test}
    about = {**counts, "listener": arguments.listener}
    items = Items(arguments.listener, counts)
    make = partial(subject, items, arguments.listener)
    records = run_all(make, arguments, arguments.output, about)
    print(stop_table(records, COLUMNS), end="")


def make_item(split: str, number: int) -> Sample:
    """Make item `number` of a split; it depends on both alone."""
    rng = random.Random(f"three:{split}:{number}")
    painter, player = Painter(rng, split), Player(rng, split)
    kind, slot = KINDS[number % len(KINDS)], number // len(KINDS) % OPTIONS
    heard, silent, *others = rng.sample(INSTRUMENTS, OPTIONS)
    shown, hidden, *rest = painter.concepts(OPTIONS)
    canvas = painter.canvas()
    if kind == "both":
        side, opposite = rng.sample(list(SIDES), 2)
        for concept, place in ((shown, side), (hidden, opposite)):
            painter.stamp(canvas, painter.glyph(concept), SIDES[place], (24, 30), painter.colour())
        rules = [f"on the {side} side with {heard.phrase}", f"on the {opposite} side with {silent.phrase}"]
        question = f"What is {' or '.join(rng.sample(rules, 2))}?"
    else:
        painter.stamp(canvas, painter.glyph(shown), (0, 0, 64, 64), (28, 48), painter.colour())
        question = "What is shown in the picture?" if kind == "picture" else "What instrument do you hear?"
    right, wrong = shown, [hidden, *rest]
    if kind == "sound":
        right, wrong = heard.name, [concept.name for concept in (silent, *others)]
    rng.shuffle(wrong)
    choices = (*wrong[:slot], right, *wrong[slot:])
    sound = Audio(player.event(heard, SECONDS), RATE)
    return Sample(str(number), kind, question, choices, (right,), canvas, sound)


class Items:
    """The items of all splits, encoded once.

    Args:
        listener: Whose sounds' form is taken.
        counts: Items, by split.
    """

    def __init__(self, listener: str, counts: dict[str, int]) -> None:
        processor = load_nano("nano-llava-v2")[1]
        self.tokenizer = processor.tokenizer
        words = {word for concept in INSTRUMENTS for word in concept.phrase.split()} | {"instrument", "hear", "with"}
        fresh = sorted(words - set(self.tokenizer.get_vocab()))
        self.tokenizer.add_tokens([AddedToken(word, single_word=True) for word in fresh])  # "heart" is not "hear" and t
        self.tokenizer.add_tokens([HEAR], special_tokens=True)
        hearing = load_model(listener)[1]
        self._collator, self._extract = VisionCollator(processor), hearing.feature_extractor
        self._hear = [self.tokenizer.convert_tokens_to_ids(HEAR)] * hearing.num_audio_tokens
        self.kinds = {split: [KINDS[number % len(KINDS)] for number in range(n)] for split, n in counts.items()}
        self._encoded = {split: self._encode(split, count) for split, count in counts.items()}

    def _encode(self, split: str, count: int) -> tuple[list[list[int]], list[list[int]], Batch]:
        """Return prompts, answers and media."""
        prompts: list[list[int]] = []
        answers: list[list[int]] = []
        parts: list[Batch] = []
        for numbers in chunks(list(range(count)), AT_ONCE):
            samples = [make_item(split, number) for number in numbers]
            seen, said, pixels = self._collator.encode([self._silent(sample) for sample in samples])
            prompts += [[*ids[:1], *self._hear, *ids[1:]] for ids in seen]
            answers += said
            sounds = [sample.audio.samples for sample in samples if sample.audio]
            parts.append(pixels | dict(self._extract(sounds, sampling_rate=RATE, return_tensors="pt")))
        return prompts, answers, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def _silent(sample: Sample) -> Sample:
        return Sample(sample.id, sample.kind, sample.question, sample.choices, sample.answers, sample.image)

    def batch(self, split: str, indices: list[int]) -> Batch:
        """Return a batch with answers and labels."""
        prompts, answers, media = self._encoded[split]
        chosen = {name: values[indices] for name, values in media.items()}
        return self._collator.training_batch([prompts[i] for i in indices], [answers[i] for i in indices], chosen)

    def test(self, kind: str) -> Iterator[Batch]:
        """Yield the test items of a kind."""
        own = [index for index, other in enumerate(self.kinds["test"]) if other == kind]
        return (self.batch("test", part) for part in chunks(own, AT_ONCE))


class SeeingListener(nn.Module):
    """A LLaVA that hears like SALMONN: the outputs of both encoders replace their placeholders in the text.

    Args:
        llava: Sees and speaks.
        ears: A `SalmonnModel`, whose language model is not used.
        hear: Id of a sound's placeholder.
    """

    def __init__(self, llava: Any, ears: Any, hear: int) -> None:
        super().__init__()
        ears.language_model = nn.Identity()
        nn.init.normal_(ears.speech_llama_proj.weight, std=INIT)
        nn.init.zeros_(ears.speech_llama_proj.bias)
        self.llava, self.ears, self._hear = llava, ears, hear

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        **sounds: Tensor,
    ) -> SimpleNamespace:
        """Return `loss` (None without labels) and `logits` [batch, length, vocabulary]."""
        inputs = self.llava.get_input_embeddings()(input_ids)
        seen = torch.cat(list(self.llava.model.get_image_features(pixel_values, return_dict=True).pooler_output))
        heard = self.ears.get_audio_features(**sounds).pooler_output
        for token, vectors in ((IMAGE, seen), (self._hear, heard)):
            inputs = inputs.masked_scatter((input_ids == token)[..., None], vectors)
        output = self.llava.get_decoder()(inputs_embeds=inputs, attention_mask=attention_mask, use_cache=False)
        logits = self.llava.get_output_embeddings()(output.last_hidden_state)
        if labels is None:
            return SimpleNamespace(loss=None, logits=logits)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def build(items: Items, listener: str, seed: int) -> tuple[nn.Module, ModulePartition]:
    """Build the model, trainable in full, and its three modules."""
    torch.manual_seed(seed)
    llava, hearing = load_nano("nano-llava-v2")[0], load_model(listener)[0]
    llava.resize_token_embeddings(len(items.tokenizer), mean_resizing=False)
    model = SeeingListener(llava, hearing.model, items.tokenizer.convert_tokens_to_ids(HEAR)).requires_grad_(True)
    modules = {name: partition_model(llava).named_parameters(name).items() for name in (LANGUAGE_MODEL, "vision")}
    return model, ModulePartition({**modules, "audio": model.ears.named_parameters(prefix="ears")})


def subject(items: Items, listener: str, seed: int) -> Subject:
    """Return the model with its partition, and the items; the test by kind."""
    model, partition = build(items, listener, seed)

    def evaluate() -> dict[str, float]:
        found = {kind: teacher_forced(model, items.test(kind)) for kind in KINDS}
        return {f"{name} {kind}": value for kind, numbers in found.items() for name, value in numbers.items()}

    order = data_order(len(items.kinds["train"]), BATCH, seed)
    return Subject(model, partition, order, partial(items.batch, "train"), evaluate)


if __name__ == "__main__":
    main()
