"""A task's documents as its own functions see them, with a picture that several of them show decoded once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar, cast

import datasets

from finepruner_lmms.benchmarks.limits import document_numbers

T = TypeVar("T")


class Once:
    """Makes each thing once, whichever thread asks first; the others wait for it, and get its error too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Hashable, Future[Any]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned or raised for this `key`."""
        with self._lock:
            if mine := key not in self._made:
                self._made[key] = Future()
            future = self._made[key]
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001 - raised again, for everyone who asks
                future.set_exception(error)
        return cast(T, future.result())


class Documents:
    """The documents of a split: a `datasets.Dataset` with decoded images, or any other sequence as it is."""

    def __init__(self, documents: Any) -> None:
        self.all = documents
        self._images: dict[str, datasets.Image] = {}
        if isinstance(documents, datasets.Dataset) and documents.format["type"] is None:
            self._images = {
                name: feature
                for name, feature in documents.features.items()
                if isinstance(feature, datasets.Image) and feature.decode
            }
        self._numbers = document_numbers(documents) if hasattr(documents, "column_names") else range(len(documents))
        self._stored = documents
        for name in self._images:
            self._stored = self._stored.cast_column(name, datasets.Image(decode=False))

    def read(self, place: int, decoded: Once) -> Any:
        """The document at a place. Files that `decoded` has seen are not decoded again; each document gets a copy."""
        if not self._images:
            return self.all[place]
        document = dict(self._stored[place])
        for name, feature in self._images.items():
            if (stored := document[name]) is None:
                continue
            if stored["bytes"] is None:  # a path, perhaps on a server: `datasets` knows how to open it
                return self.all[place]
            key = hashlib.blake2b(stored["bytes"], digest_size=16).digest()
            document[name] = decoded.get(key, partial(feature.decode_example, stored)).copy()
        return document

    def number(self, place: int) -> int:
        """The document's number in the whole data set."""
        return self._numbers[place]
