"""A Llama tokenizer from its SentencePiece file, which is all that original LLaVA checkpoints hold.

transformers 5 reads such files through protobuf classes that sentencepiece generates; current sentencepiece needs a
protobuf 7 for them, which other packages of the environment exclude. The library itself reads the file without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object

_SPACE = "▁"


def read_sentencepiece(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`: same ids as Llama's own, each piece of text between special tokens taken by itself.

    `options` go to the tokenizer. `FieldError` if its files are damaged or contradict each other.
    """
    file = folder / "tokenizer.model"
    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        fix = f"fetch {str(file)!r} again"
        raise FieldError(file.name, "cannot be read as a SentencePiece model", value=str(file), fix=fix) from error
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    special = [p for i, p in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)]
    bos, eos, unknown = (pieces[number] for number in (model.bos_id(), model.eos_id(), model.unk_id()))
    backend = Tokenizer(
        BPE(vocabulary, _merges(model, pieces, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "clean_up_tokenization_spaces": False}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **(named | options))
    for number, token in sorted(_added(folder).items()):
        if number < len(pieces):
            continue
        tokenizer.add_tokens([token])
        if tokenizer.convert_tokens_to_ids(token.content) != number:
            raise FieldError(
                "added_tokens",
                f"{token.content!r} is number {number}, but {str(file)!r} and the tokens before it leave off at "
                f"{len(tokenizer) - 2}; the tokenizer files are not of one model",
                value=number,
            )
    return tokenizer


def _added(folder: Path) -> dict[int, AddedToken]:
    """Tokens that the checkpoint has besides those of its SentencePiece file, by number."""
    found: dict[int, AddedToken] = {}
    if (file := folder / "added_tokens.json").is_file():
        for content, number in load_object(file).items():
            found[int(number)] = AddedToken(content, normalized=False, special=True)
    if (file := folder / "tokenizer_config.json").is_file():
        for number, token in (load_object(file).get("added_tokens_decoder") or {}).items():
            keys = ("lstrip", "rstrip", "single_word", "normalized", "special")
            found[int(number)] = AddedToken(token["content"], **{key: token[key] for key in keys if key in token})
    return found


def _merges(model: SentencePieceProcessor, pieces: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, pieces of a higher score first."""
    plain = {i for i in range(len(pieces)) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))}
    found = []
    for number in plain:
        piece = pieces[number]
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left in plain and right in plain:
                found.append((-model.get_score(number), number, left, right))
    return [(pieces[left], pieces[right]) for _, _, left, right in sorted(found)]
