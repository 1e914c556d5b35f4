"""A model that knows the documents, for lmms-eval to run the tasks with."""

from __future__ import annotations

from lmms_eval.api.model import lmms
from PIL import Image


class Oracle(lmms):
    """Says what `answer(document)` says, after checking that there is one picture and a prompt."""

    is_simple = True

    def __init__(self, answer) -> None:
        super().__init__()
        self._answer, self.prompts = answer, {}

    def generate_until(self, requests):
        said = []
        for request in requests:
            prompt, _, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            (picture,) = doc_to_visual(doc)
            assert isinstance(picture, Image.Image) and picture.size == (336, 336)
            self.prompts[doc_id] = prompt
            said.append(self._answer(doc))
        return said

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError

    def clean(self):
        pass
