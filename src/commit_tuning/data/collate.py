"""Batches for vision-language and audio-language models, made with the model's own processor.

Only :func:`build_prompt` knows the text around a question. :mod:`commit_tuning.data.prompts` has the wording of the
question.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from commit_tuning.data.files import FaultError, shown
from commit_tuning.data.prompts import find_prompt
from commit_tuning.data.sample import CONVERSATION, Sample
from commit_tuning.data.tokens import PlainTokens
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

IGNORED = -100
_PER_TOKEN = {"input_ids", "attention_mask", "mm_token_type_ids"}  # made again once the answers are there
_CUE = "Answer:"
_NO_LIMIT = 10**9  # from here on a tokenizer's longest text is none
_KEPT_ANSWERS = 10_000  # whose ids are remembered: questions have few answers, captions and conversations no end


class RefusedError(UserError):
    """Samples that cannot be a row of a batch: too long for the model, or with text that its tokenizer cannot write.

    Args:
        samples: The batch.
        reasons: Why, by place in the batch; at least one.

    Attributes:
        reasons: As given.
    """

    def __init__(self, samples: Sequence[Sample], reasons: Mapping[int, str]) -> None:
        place, reason = next(iter(reasons.items()))
        more = f" (and {len(reasons) - 1} more of this batch)" if len(reasons) > 1 else ""
        super().__init__(f"sample {shown(samples[place].id)!r}: {reason}{more}; leave it out or shorten it")
        self.reasons = dict(reasons)


def question_text(sample: Sample, prompt: str = "plain") -> str:
    """Return the words of a question, such as ``What is shown? Options: heart, star. Answer:``."""
    return find_prompt(prompt).question(sample)


def build_prompt(processor: Any, sample: Sample, prompt: str = "plain") -> str:
    """Write the text for the processor, with the placeholder of picture or sound where the processor needs one.

    A processor with a chat template gets one user turn; without, the plain words. LLaVA's processor expands an image
    token in the text; BLIP-2's puts its query tokens in front by itself. A placeholder or another special token that is
    spelt in the question stays text; see :class:`~commit_tuning.data.tokens.PlainTokens`.
    """
    return _framed(processor, sample, PlainTokens(processor).question(question_text(sample, prompt)))


def _framed(processor: Any, sample: Sample, text: str) -> str:
    medium = "image" if sample.audio is None else "audio"
    if getattr(processor, "chat_template", None):
        content = [{"type": medium}, {"type": "text", "text": text}]
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    if hasattr(processor, "num_query_tokens"):
        return text
    return f"{getattr(processor, f'{medium}_token')}\n{text}"


class VisionCollator:
    """Turns samples into a model's batch.

    Prompt and answer are tokenised apart and joined, so a training row is exactly the prompt of generation plus the
    answer and the end-of-sequence token.

    Args:
        processor: A transformers processor of one image per text (such as LlavaProcessor or Blip2Processor), or of one
            sound per text (such as Qwen2AudioProcessor, with Whisper's log-mel features).
        device: Where the tensors go; None leaves them on the CPU.
        prompt: How a question is asked: a name of :data:`commit_tuning.data.prompts.PROMPTS`.
        max_tokens: Most tokens of prompt and answer together; None for the tokenizer's limit.
        cut: Whether a question that is too long is cut instead of refused. It loses its end, a conversation its
            beginning.
            Choices and answers are never cut.
        room: Tokens that are kept free for an answer at least.

    Raises:
        UserError: The processor has no tokenizer, image processor (or feature extractor) or end-of-sequence token, or
            there is no such prompt.
    """

    def __init__(
        self,
        processor: Any,
        device: torch.device | str | None = None,
        prompt: str = "plain",
        *,
        max_tokens: int | None = None,
        cut: bool = False,
        room: int = 1,
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        media = [getattr(processor, name, None) for name in ("image_processor", "feature_extractor")]
        if tokenizer is None or media == [None, None]:
            name = type(processor).__name__
            raise UserError(f"{name} is no vision-language processor, nor an audio one: load one with AutoProcessor")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token")
        self.processor = processor
        self.device = device
        self._prompt, self._ask = prompt, find_prompt(prompt)
        self._eos: int = tokenizer.eos_token_id
        self._bos: int | None = tokenizer.bos_token_id
        self._pad: int = self._eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._most: int = min(max_tokens or tokenizer.model_max_length, _NO_LIMIT)
        self._cuts, self._room = cut, room
        self._plain = PlainTokens(processor)
        self._answers: dict[str, list[int]] = {}
        self._cue: list[int] = tokenizer(_CUE, add_special_tokens=False)["input_ids"]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Make a training batch, padded on the right.

        Args:
            samples: B questions.

        Returns:
            input_ids, attention_mask, labels, and mm_token_type_ids where the processor gives them: int64 (B, L);
            labels are -100 on prompt and padding. pixel_values: float (B, 3, H, W), or for sounds input_features:
            float (B, mel bins, frames) and its mask.

        Raises:
            UserError: As :meth:`encode`.
        """
        return self.training_batch(*self.encode(samples))

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Make a batch for generation: the prompts alone, padded on the left.

        Args:
            samples: B questions.

        Returns:
            input_ids, attention_mask: int64 (B, L); pixel_values or input_features as in training.

        Raises:
            UserError: As :meth:`encode`.
        """
        prompts, _, media = self.encode(samples, answered=False)
        return self.prompt_batch(prompts, media)

    def training_batch(
        self, prompts: list[list[int]], answers: list[list[int]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Make what `__call__` returns from encoded samples."""
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        labels = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return self._place(self._tokens(rows) | {"labels": _pad(labels, IGNORED)} | images)

    def prompt_batch(self, prompts: list[list[int]], images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make what `prompts` returns from encoded samples."""
        return self._place(self._tokens(prompts, left=True) | images)

    def _tokens(self, rows: list[list[int]], *, left: bool = False) -> dict[str, Tensor]:
        """Return a model's inputs for each token: id, mask, and for some processors the type."""
        ids = _pad(rows, self._pad, left=left)
        tokens = {"input_ids": ids, "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=left)}
        if _gives_types(self.processor):
            tokens["mm_token_type_ids"] = torch.as_tensor(self.processor.create_mm_token_type_ids(ids.tolist()))
        return tokens

    def encode(
        self, samples: Sequence[Sample], answered: bool = True
    ) -> tuple[list[list[int]], list[list[int]], dict[str, Tensor]]:
        """Return unpadded token ids of the prompts and of the answers, and the tensors of the images or sounds.

        Args:
            samples: B questions.
            answered: Whether the answers are encoded as well; else each of them is empty.

        Raises:
            UserError: There is no sample, or their media are not the processor's.
            RefusedError: A sample is too long, or the tokenizer cannot write its text.
        """
        if not samples:
            raise UserError("a batch needs at least one sample")
        given = self._media(samples)
        answers = _each(samples, self.target_ids) if answered else [[] for _ in samples]
        encoded = self.processor(**given, text=_each(samples, self._text))
        prompts = [self._prompt_ids(list(row)) for row in encoded["input_ids"]]
        sizes = list(map(self._size, map(len, prompts), answers))
        if max(sizes) <= self._most:
            return prompts, answers, {name: _stack(value) for name, value in encoded.items() if name not in _PER_TOKEN}
        if self._cuts:
            return self.encode(_each(samples, self._fitting, prompts, sizes), answered)
        told = f"question and answer are {{}} tokens, and the model reads {self._most}"
        raise RefusedError(samples, {place: told.format(size) for place, size in enumerate(sizes) if size > self._most})

    def _size(self, prompt: int, answer: list[int]) -> int:
        return prompt + max(len(answer), self._room)

    def _fitting(self, sample: Sample, prompt: list[int], size: int) -> Sample:
        return sample if size <= self._most else self._shortened(sample, len(prompt))

    def _shortened(self, sample: Sample, tokens: int) -> Sample:
        """Return the sample with as much of its question as fits.

        Args:
            sample: Too long.
            tokens: Of its prompt; what picture or sound takes of them does not depend on the question.
        """

        def first(letters: int) -> Sample:
            from_end = sample.kind == CONVERSATION  # what was said last is what is answered
            kept = slice(len(sample.question) - letters, None) if from_end else slice(letters)
            return replace(sample, question=sample.question[kept])

        def written(part: Sample) -> int:
            return len(self.processor.tokenizer(self._text(part))["input_ids"])

        def size(letters: int) -> int:
            return beside + written(first(letters))

        whole = len(sample.question)
        beside = self._size(tokens, self.target_ids(sample)) - written(sample)
        fitting = bisect_right(range(whole), self._most, key=size) - 1
        if fitting < 1:
            raise FaultError(f"without its question it is {size(0)} tokens, and the model reads {self._most}")
        return first(fitting)

    def _text(self, sample: Sample) -> str:
        return _framed(self.processor, sample, self._plain.question(question_text(sample, self._prompt)))

    def _prompt_ids(self, row: list[int]) -> list[int]:
        """Remove the end of the sequence, and one beginning where chat template and tokenizer both write it."""
        if self._bos is not None and row[:2] == [self._bos, self._bos]:
            row = row[1:]
        return row[:-1] if row[-1] == self._eos and len(row) > 1 else row

    def _media(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the pictures or the sounds, as the processor takes them."""
        sounds = [sample.audio for sample in samples if sample.audio is not None]
        if not sounds and all(sample.image is not None for sample in samples):
            if getattr(self.processor, "image_processor", None) is None:
                raise UserError(f"{type(self.processor).__name__} takes sounds, and the samples have pictures")
            return {"images": [sample.image for sample in samples]}
        if len(sounds) != len(samples):
            raise UserError("a batch needs a picture in every sample, or a sound in every sample")
        wanted = getattr(getattr(self.processor, "feature_extractor", None), "sampling_rate", None)
        rates = sorted({sound.rate for sound in sounds})
        if wanted is None:
            raise UserError(f"{type(self.processor).__name__} takes no sounds, and the samples have no pictures")
        if rates != [wanted]:
            name = type(self.processor).__name__
            raise UserError(f"{name} takes sounds at {wanted} Hz, not {rates}: open the dataset with rate={wanted}")
        return {"audio": [sound.samples for sound in sounds], "sampling_rate": wanted}

    def meant(self, sample: Sample, said: str) -> str:
        """Return an answer in the words of the choices, if a letter was asked for; see :meth:`Prompt.meant`."""
        return self._ask.meant(sample, said)

    def target_ids(self, sample: Sample) -> list[int]:
        """Return the ids of a sample's trained answer, and the end of the sequence."""
        return self.answer_ids(self._ask.answer(sample))

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer as it is written after the cue, and the end of the sequence.

        Raises:
            FaultError: The tokenizer cannot write it.
        """
        if answer not in self._answers:
            ids = self._plain.ids(f"{_CUE} {answer}")
            if ids[: len(self._cue)] != self._cue or len(ids) == len(self._cue):
                raise FaultError(f"the tokenizer cannot write the answer {shown(answer)!r} after {_CUE!r}")
            if len(self._answers) >= _KEPT_ANSWERS:
                self._answers.clear()
            self._answers[answer] = [*ids[len(self._cue) :], self._eos]
        return self._answers[answer]

    def _place(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch if self.device is None else {name: value.to(self.device) for name, value in batch.items()}


def _each(samples: Sequence[Sample], make: Callable[..., Result], *more: Sequence[Any]) -> list[Result]:
    """Make a result from each sample and what belongs to it; RefusedError names all samples that fail."""
    made, reasons = [], {}
    for place, given in enumerate(zip(samples, *more, strict=True)):
        try:
            made.append(make(*given))
        except FaultError as fault:
            reasons[place] = str(fault)
    if reasons:
        raise RefusedError(samples, reasons)
    return made


def _gives_types(processor: Any) -> bool:
    """Whether a processor gives the type of each token: a setting of its own, or of its texts in older transformers."""
    name = "return_mm_token_type_ids"
    of_texts = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {}).get("text_kwargs", {})
    return bool(getattr(processor, name, False) or of_texts.get(name, False))


def _stack(values: Any) -> Tensor:
    """Stack one array or tensor per image."""
    return values if isinstance(values, torch.Tensor) else torch.stack([torch.as_tensor(value) for value in values])


def _pad(rows: list[list[int]], value: int, *, left: bool = False) -> Tensor:
    """Pad rows of unequal length to one int64 tensor (B, longest)."""
    longest = max(map(len, rows))
    gaps = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])
