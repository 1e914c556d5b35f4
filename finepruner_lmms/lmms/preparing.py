"""Questions made ready for the model while it answers others: documents read, pictures prepared, prompts as ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from finepruner_lmms.asking.inputs import Prompt, SquareInputs, input_maker
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.ahead import one_ahead
from finepruner_lmms.lmms.batching import Prepared, windows
from finepruner_lmms.lmms.documents import Documents, Once
from finepruner_lmms.lmms.image_encoding import ImageEncoder, Picture, content_key
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.requests import Asked


class Preparer:
    """Prepares questions for a model of the configuration `config`.

    `images` encodes the pictures of LLaVA-1.5, each once for all who show it; other families have none.
    """

    def __init__(self, config: Any, processor: Any, arguments: ModelArguments, images: ImageEncoder | None) -> None:
        asked = arguments.evaluation(find_family(config.model_type))
        self._inputs, self._images = input_maker(config, processor, asked), images

    def windows(
        self,
        questions: Sequence[Asked],
        splits: dict[str, dict[str, Any]],
        batch_size: int,
        tell: Callable[[Asked], tuple[dict[str, Any], str]],
        waited: Callable[[float], None],
    ) -> Generator[list[Prepared]]:
        """The questions in windows, each made ready while the one before it is answered.

        `splits` holds the documents by task and split, `tell` gives how a question is decoded and its key, and
        `waited` is told for how many seconds the caller had to wait.
        """
        named = {(asked.task, asked.split) for asked in questions}
        documents = {(task, split): Documents(splits[task][split]) for task, split in named}
        if questions and self._images is not None:  # where nothing is asked, nothing is learnt about images
            self._images.begin_scan(task for task, _ in named)

        text = threading.Lock()  # tokenizers and templates are not made for several threads

        def prepare(window: Sequence[Asked]) -> Callable[[Asked], Prepared]:
            decoded, ready = Once(), Once()

            def prepare_one(asked: Asked) -> Prepared:
                where = documents[asked.task, asked.split]
                prompt, pictures = self._prompt(asked, where, decoded, ready, text)
                number, (decoding, key) = where.number(int(asked.doc_id)), tell(asked)
                return Prepared(asked.task, number, prompt, pictures, decoding, key)

            return prepare_one

        return one_ahead([questions[part] for part in windows(len(questions), batch_size)], prepare, waited)

    def _prompt(
        self, asked: Asked, documents: Documents, decoded: Once, ready: Once, text: threading.Lock
    ) -> tuple[Prompt, tuple[Picture, ...]]:
        conversation = asked.conversation(lambda: documents.read(asked.doc_id, decoded))
        encoder = self._images
        try:
            if encoder is None or not isinstance(self._inputs, SquareInputs):
                with text:
                    return self._inputs.prompt(conversation), ()
            keyed = [(content_key(image), image) for image in conversation.images]
            pictures = tuple(ready.get(key, partial(encoder.prepare, key, image)) for key, image in keyed)
            with text:
                return self._inputs.ids(conversation), pictures
        except FieldError as error:
            raise FieldError(asked.where, str(error)) from error
