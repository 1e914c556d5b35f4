"""Training of the demo model: what can be checked without an hour."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from demo_training.language import Plan, Trainer
from demo_training.sizes import SHALLOW, build
from demo_training.tower import encode

from finepruner_lmms.demo.vocabulary import SPECIAL, build_processor


def test_a_stopped_phase_goes_on_exactly_where_it_was(tmp_path, monkeypatch):
    tokenizer = build_processor().tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    said: list[str] = []
    monkeypatch.setattr(Trainer, "evaluate", lambda self, count=576: "not here")
    plan, partial = (
        Plan("x", steps=54, rate=1e-3, floor=0.1, batch=2, questions=2, probe=0.5),
        tmp_path / "x.partial.pt",
    )

    def trained() -> list[torch.Tensor]:
        model = build(len(tokenizer), ids, SHALLOW, 0)
        data = encode(model, "train", 20_000, 4)
        trainer = Trainer(model, tokenizer, data, data, 0, said.append)
        trainer.run(plan, partial)
        return [parameter.detach() for parameter in trainer.decoder.parameters()]

    whole = trained()
    assert partial.exists() and not any("goes on" in line for line in said)
    resumed = trained()
    assert "x.partial: goes on at step 50" in said
    # other batches would move weights by a thousandth; rounding, by a millionth
    assert max(float((a - b).abs().max()) for a, b in zip(whole, resumed, strict=True)) < 1e-5
