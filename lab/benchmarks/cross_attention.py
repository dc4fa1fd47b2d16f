"""CoMMIT on a model of Flamingo's kind: `python lab/benchmarks/cross_attention.py --output runs/cross-attention`.

transformers' `MllamaForConditionalGeneration` at nano size, trained in full on Nano-IconQA. Pictures enter through
gated cross-attention layers between those of the language model (Flamingo, Alayrac et al. 2022, arXiv 2204.14198;
Llama 3.2 Vision). The layers of nano LLaVA's pretrained language model stand between fresh cross-attention layers,
whose gates are zero at first, and the vision tower is fresh: at the start the model is blind, and no gradient reaches
the tower. The partition gives the cross-attention layers to the language model, in which they lie; `--cross-attention
vision` gives them to the encoder, `own` makes them a module. Prints Markdown.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arms import add_options
from course import Batch, Subject, run_all, teacher_forced
from stop_table import stop_table
from torch import Tensor

from commit_lab.nano.models.build import IMAGE, IMAGE_PX, INIT, PATCH_PX
from commit_lab.nano.models.build import LANGUAGE_MODEL as SIZES
from commit_lab.nano.models.load import load_nano
from commit_tuning import ModulePartition, partition_model
from commit_tuning.data.collate import VisionCollator, question_text
from commit_tuning.data.sample import Sample
from commit_tuning.data.tasks import TASKS
from commit_tuning.models.load import load_processor
from commit_tuning.partition.modules import LANGUAGE_MODEL
from commit_tuning.train.dataset import chunks, data_order

ARMS = ["constant:3e-4", "constant:1e-3", "constant:3e-3", "feature-cd:1e-3", "language-cd:1e-3", "default:1e-3"]
ARMS += ["commit:1e-3", "literal-clr:1e-3", "literal:1e-3"]
BATCH, AT_ONCE = 16, 100  # samples of a step, and of a forward pass in evaluation
LAYERS, CROSS = 4, (1, 3)  # of the language model, and which of them are cross-attention


def main() -> None:
    """Run every arm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cross-attention", choices=["language_model", "vision", "own"], default="language_model")
    parser.add_argument("--train", type=int, default=6000, help="questions to train on")
    parser.add_argument("--test", type=int, default=600, help="questions to test on")
    parser.add_argument("--root", type=Path, help="folder of Nano-IconQA; the one in the cache by default")
    add_options(parser, ARMS, [100, 400, 1600], [0, 1])
    arguments = parser.parse_args()
    data = Questions(arguments.root, arguments.train, arguments.test)
    make = partial(subject, data, arguments.cross_attention)
    folder = arguments.output / arguments.cross_attention
    records = run_all(make, arguments, folder, {"train": arguments.train, "test": arguments.test})
    print(stop_table(records, columns(arguments.cross_attention)), end="")


class Questions:
    """Nano-IconQA, encoded once: one picture of one tile a question.

    Args:
        root: Folder of the data; None for the one in the cache.
        train: Questions to train on.
        test: Questions to test on.
    """

    def __init__(self, root: Path | None, train: int, test: int) -> None:
        self._processor = load_processor("nano-llava-v2")
        self._collator = VisionCollator(self._processor)
        task, limits = TASKS["nano-iconqa"], {"train": train, "test": test}
        folder = task.root(root and str(root))
        read = {split: task.read(folder, split, limit, False) for split, limit in limits.items()}
        self._samples = {split: [found[index] for index in range(len(found))] for split, found in read.items()}
        self._pixels = {
            split: torch.cat([self._pictures(part) for part in chunks(samples, AT_ONCE)])
            for split, samples in self._samples.items()
        }

    def batch(self, split: str, indices: list[int]) -> Batch:
        """Return a batch with answers and labels, as `MllamaForConditionalGeneration` takes it."""
        samples = [self._samples[split][index] for index in indices]
        texts = [f"{self._processor.image_token} {question_text(sample)}" for sample in samples]
        prompts = self._processor.tokenizer(texts)["input_ids"]
        pixels = self._pixels[split][indices][:, None, None]  # [questions, images, tiles, 3, side, side]
        ones = torch.ones(len(indices), 1, dtype=torch.long)
        media = {"pixel_values": pixels, "aspect_ratio_ids": ones, "aspect_ratio_mask": ones[:, None]}
        return self._collator.training_batch(prompts, list(map(self._collator.target_ids, samples)), media)

    def test(self) -> Iterator[Batch]:
        """Yield the test questions."""
        return (self.batch("test", part) for part in chunks(list(range(len(self._samples["test"]))), AT_ONCE))

    def order(self, seed: int) -> Iterator[list[int]]:
        """Yield endless lists of training questions."""
        return data_order(len(self._samples["train"]), BATCH, seed)

    def _pictures(self, samples: list[Sample]) -> Tensor:
        pixels = self._processor.image_processor([sample.image for sample in samples])["pixel_values"]
        return torch.stack([torch.as_tensor(values) for values in pixels])


def subject(data: Questions, place: str, seed: int) -> Subject:
    """Return the model with its partition, and the questions."""
    model = build(seed)
    partition = share_out(model, place)
    return Subject(
        model, partition, data.order(seed), partial(data.batch, "train"), lambda: teacher_forced(model, data.test())
    )


def build(seed: int) -> Any:
    """Build a Mllama with the self-attention layers, embeddings and output head of nano LLaVA's language model."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    trained = load_nano("nano-llava-v2")[0].get_decoder()
    vision = MllamaVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_global_layers=1, attention_heads=3,
        vision_output_dim=2 * 96, intermediate_layers_indices=[1], image_size=IMAGE_PX, patch_size=PATCH_PX,
        max_num_tiles=1, supported_aspect_ratios=[[1, 1]], initializer_range=INIT,
    )  # fmt: skip
    sizes = SIZES | {"num_hidden_layers": LAYERS, "tie_word_embeddings": False}
    text = MllamaTextConfig(
        vocab_size=trained.config.vocab_size, cross_attention_layers=list(CROSS),
        rope_parameters=trained.config.rope_parameters, rms_norm_eps=trained.config.rms_norm_eps, **sizes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    )
    decoder, words = model.get_decoder(), trained.embed_tokens.weight
    own = [layer for index, layer in enumerate(decoder.layers) if index not in CROSS]
    for layer, source in zip((*own, decoder.norm), (*trained.layers, trained.norm), strict=True):
        layer.load_state_dict(source.state_dict())
    with torch.no_grad():
        decoder.embed_tokens.weight[: len(words)] = words
        model.lm_head.weight.copy_(words)
    return model


def share_out(model: Any, place: str) -> ModulePartition:
    """Return the partition, with the cross-attention layers in their place."""
    partition = partition_model(model)
    if place == LANGUAGE_MODEL:
        return partition
    layers = model.get_decoder().layers
    crossing = {id(parameter) for index in CROSS for parameter in layers[index].parameters()}
    modules: dict[str, dict[str, Any]] = {name: {} for name in (*partition.names, *(["cross"] * (place == "own")))}
    for name in partition.names:
        for parameter_name, parameter in partition.named_parameters(name).items():
            moved = {"own": "cross"}.get(place, place) if id(parameter) in crossing else name
            modules[moved][parameter_name] = parameter
    return ModulePartition({name: named.items() for name, named in modules.items()})


def columns(place: str) -> dict[str, tuple[str, str]]:
    """Return the columns that are printed of a stop."""
    numbers = {"loss, test": ("loss", ".3f"), "test accuracy": ("accuracy", ".1f")}
    names = ["vision", *(["cross"] if place == "own" else [])]
    kappas = [("smoothed kappa", "smoothed_kappa"), ("median kappa", "kappa")]
    if place == "own":
        kappas = [(f"kappa of {name}", f"kappa/{name}") for name in names]
    numbers |= {head: (name, ".2g") for head, name in kappas}
    return numbers | {f"rate of {name}": (f"lr/{name}", ".1e") for name in (LANGUAGE_MODEL, *names)}


if __name__ == "__main__":
    main()
