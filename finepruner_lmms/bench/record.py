"""What a run of the bench leaves: the machine, the request and the figures, as one JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from finepruner_lmms.bench.measure import NATURAL_MEAN, NATURAL_MOST, Figures
from finepruner_lmms.bench.roofline import Device
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object, write_json


@dataclass(frozen=True)
class Record:
    """`text` is what a prompt holds beside its image, in tokens; `tokens` the fixed length of an answer."""

    model: str
    random_weights: bool
    text: float
    visual: int
    tokens: int
    rounds: int
    device: Device
    figures: tuple[Figures, ...]

    @property
    def natural(self) -> str:
        """What "natural length" means in this run."""
        if self.random_weights:
            return (
                "random weights never end an answer, so lengths are drawn from a geometric distribution (mean "
                f"{NATURAL_MEAN}, at most {NATURAL_MOST}; an assumption); a batch lasts as long as its longest answer"
            )
        return f"answers end with the model's own end token, after at most {8 * NATURAL_MOST} tokens"

    @property
    def batches(self) -> list[int]:
        """Ascending."""
        return sorted({one.batch for one in self.figures})

    def of_batch(self, batch: int) -> list[Figures]:
        """In the order in which they were asked for."""
        return [one for one in self.figures if one.batch == batch]

    def unpruned(self, one: Figures) -> Figures:
        """The same batch without pruning; in the same execution, if it was measured so."""
        found = [other for other in self.of_batch(one.batch) if other.method == "vanilla"]
        return next((other for other in found if other.execution == one.execution), found[0])


def save(record: Record, path: Path) -> None:
    """Write it whole."""
    write_json(path, asdict(record))


def load(path: Path) -> Record:
    """Read it again. `FieldError` naming the file if it is none."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Record).validate_python(load_object(path))
    except ValidationError as error:
        raise FieldError("--redraw", f"{str(path)!r} is no result of `bench`", value=str(path)) from error
