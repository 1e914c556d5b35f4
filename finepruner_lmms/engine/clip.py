"""CLIP's joint space of patches and words, for methods that read the question before the language model does."""

from __future__ import annotations

import functools
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from finepruner_lmms.engine.loading_report import check_report
from finepruner_lmms.engine.parts import normalise_patches
from finepruner_lmms.errors import FieldError, first_line
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.ops.selection import unit_vectors

_FORM_OF_ANSWER = (
    "\nAnswer the question using a single word or phrase.",
    "\nAnswer with the option's letter from the given choices directly.",
)
_PLACEHOLDER = "<image>"


class JointSpace:
    """The text tower and both projections of a CLIP checkpoint, in float32."""

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            clip, report = CLIPModel.from_pretrained(
                name,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they come with the report
                weights_only=True,
                trust_remote_code=False,
            )
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            problem = f"cannot load the CLIP checkpoint {name!r}: {first_line(error)}"
            raise FieldError("clip", problem, value=name) from error
        check_report(report, "clip", name, "CLIP")
        self.text_model = clip.text_model.eval().to(device)
        self.text_projection = clip.text_projection.to(device)
        self.visual_projection = clip.visual_projection.to(device)
        self.device, self.length = device, clip.config.text_config.max_position_embeddings

    def embed_patches(self, model: Any, features: Tensor) -> Tensor:
        """Patch features `[B, N, C]` of `model`'s tower in the joint space: `[B, N, P]`."""
        if features.shape[-1] != self.visual_projection.in_features:
            raise ValueError(
                f"clip: the checkpoint projects features of width {self.visual_projection.in_features}, but the "
                f"model's vision tower has {features.shape[-1]}; name the checkpoint that the tower comes from"
            )
        with for_choosing(features.device):
            return self.visual_projection(normalise_patches(model, features).float())

    def embed_texts(self, texts: list[str]) -> list[Tensor]:
        """Each text as `[M, P]`: one vector per 75 tokens, each piece between its own start and end token.

        The released code cuts a long text without closing its pieces; CLIP then pools their first position, which is
        the same for all texts.
        """
        hidden, ends, counts = self._read(texts)
        with for_choosing(self.device):
            return list(self.text_projection(_at(hidden, ends)).split(counts))

    def embed_words(self, texts: list[str]) -> list[Tensor]:
        """Each text as `[M + 1, P]`: its M tokens, and then the whole: the mean of its pieces, each of length 1.

        The start and end tokens are no words, and nor is padding.
        """
        hidden, ends, counts = self._read(texts)
        with for_choosing(self.device):
            wholes = unit_vectors(self.text_projection(_at(hidden, ends))).split(counts)
            words = [self.text_projection(piece[1:end]) for piece, end in zip(hidden, ends, strict=True)]
            first, found = 0, []
            for whole in wholes:
                found.append(torch.cat([*words[first : first + len(whole)], whole.mean(0, keepdim=True)]))
                first += len(whole)
            return found

    def _read(self, texts: list[str]) -> tuple[Tensor, list[int], list[int]]:
        """The text tower's states of all pieces `[pieces, T, C]`, where each piece ends, and how many a text has."""
        tokenizer, room = self.tokenizer, self.length - 2
        pieces, counts = [], []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            parts = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
            pieces += [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
            counts.append(len(parts))
        width = max(map(len, pieces))
        ids = torch.tensor([piece + [tokenizer.eos_token_id] * (width - len(piece)) for piece in pieces])
        mask = torch.tensor([[1] * len(piece) + [0] * (width - len(piece)) for piece in pieces])
        with for_choosing(self.device):
            hidden = self.text_model(ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return hidden, [len(piece) - 1 for piece in pieces], counts


def _at(hidden: Tensor, ends: list[int]) -> Tensor:
    """Of each piece `[pieces, T, C]` its state at its end: `[pieces, C]`."""
    return hidden[torch.arange(len(ends), device=hidden.device), torch.tensor(ends, device=hidden.device)]


@functools.lru_cache(maxsize=2)
def joint_space(name: str, device: torch.device) -> JointSpace:
    """The joint space of a checkpoint, loaded once."""
    return JointSpace(name, device)


def bare_question(question: str) -> str:
    """The question without LLaVA's instructions on the form of the answer: what a method reads for relevance.

    As in CDPruner's released code: options, hints and OCR tokens stay.
    """
    for instruction in _FORM_OF_ANSWER:
        question = question.replace(instruction, "")
    return question.replace(_PLACEHOLDER, "").strip()
