"""How many prompts fit into memory at once: a batch that does not is halved, and that is remembered.

Remembered for a model and a method on a device, in a file that all processes of a study share: see `VARIABLE`. It says
where to begin, never what to answer. Nothing here imports torch by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from finepruner_lmms.errors import first_line
from finepruner_lmms.lmms.sealed_lines import Seal

VARIABLE = "FINEPRUNER_BATCH_SIZES"
"""In the environment: the file in which batch sizes are remembered; without it, only this process remembers them."""
_SEAL = Seal("batch sizes")


def out_of_memory(error: BaseException) -> bool:
    """Whether fewer prompts at once may help."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


class BatchSizes:
    """The batch sizes at which memory did not run out, by setting; `file` is shared by processes, and may be None."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, int] = {}

    @classmethod
    def of_environment(cls) -> BatchSizes:
        """With the file that the environment names."""
        return cls(Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)

    def most(self, setting: str, asked: int) -> int:
        """How many prompts to begin with, where `asked` are wanted."""
        self._read()
        return min(asked, self._known.get(setting, asked))

    def ran_out(self, setting: str, rows: int) -> int:
        """Memory ran out with so many prompts: how many to go on with."""
        from loguru import logger

        size = max(1, rows // 2)
        self._known[setting] = min(size, self._known.get(setting, size))
        where = "" if self._file is None else f" (remembered in {self._file}; remove that to try again)"
        logger.warning(f"memory ran out with {rows} prompts at once; going on with {size}: {setting}{where}")
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab", buffering=0) as file:  # a line is one write, whoever else writes
                    file.write(b"\n" + _SEAL.close({"setting": setting, "prompts": size}).encode() + b"\n")
            except OSError as error:
                logger.warning(f"{self._file} cannot be written ({first_line(error)}); other cells try again")
        return size

    def _read(self) -> None:
        """What all processes found out."""
        try:
            content = b"" if self._file is None else self._file.read_bytes()
        except OSError:  # nobody ran out of memory yet, or the file cannot be read: it is found out again
            return
        for line in content.split(b"\n"):
            record = _SEAL.open(line)
            if record is not None and isinstance(size := record.get("prompts"), int):
                setting = str(record.get("setting"))
                self._known[setting] = max(1, min(size, self._known.get(setting, size)))
