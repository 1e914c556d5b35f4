"""From a document's picture to encoded images: read ahead in threads, encoded in chunks, kept in a cache."""

from __future__ import annotations

import _thread
import copy
import io
import random
import threading
import time
from collections import OrderedDict

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import finepruner_lmms as fp
from finepruner_lmms.asking.conversation import shown, single
from finepruner_lmms.checkpoints.images import preprocess, whole_files
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.fixed.vision import vision_programs
from finepruner_lmms.engine.image_chunks import ChunkEncoder
from finepruner_lmms.engine.vision_tower import encode_chunk
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.ahead import one_ahead
from finepruner_lmms.lmms.batching import windows
from finepruner_lmms.lmms.documents import Documents, Once
from finepruner_lmms.lmms.identity import answer_settings
from finepruner_lmms.lmms.image_cache import ImageCache, Storage
from finepruner_lmms.lmms.image_encoding import ImageEncoder, Picture, content_key
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.requests import Asked
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs
from finepruner_lmms.testing import no_host_sync, tiny_llava

CPU = torch.device("cpu")


def pixels(count: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


def encoder(**arguments) -> ImageEncoder:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return ImageEncoder(tiny_llava(), processor, ModelArguments(**arguments))


def photos(images: ImageEncoder, count: int) -> list[Picture]:
    made = [Image.effect_noise((20 + i, 24), 60).convert("RGB") for i in range(count)]
    return [images.prepare(content_key(photo), photo) for photo in made]


def same(one: VisionOutputs, other: VisionOutputs) -> bool:
    first, second = one.tensors(), other.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["eager", "graphs"])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_pictures_features_do_not_depend_on_company_or_place(size, execution):
    chunks = ChunkEncoder(tiny_llava(), size, execution)
    asked, others = pixels(1)[0], pixels(3 * size, seed=1)
    (alone,) = chunks.encode([asked])
    for place in range(size):
        for start in (0, size):
            company = others[start : start + size]
            company[place] = asked
            assert same(chunks.encode(company)[place], alone)
            assert same(chunks.encode(company[: place + 1])[place], alone)  # the rest of the chunk is filled up


def test_a_chunk_gives_what_encode_images_gives():
    given = pixels(3)
    found = VisionOutputs.join(ChunkEncoder(tiny_llava(), 3).encode(given))
    assert same(found, fp.encode_images(tiny_llava(), torch.stack(given)))
    with pytest.raises(FieldError, match="pictures: got 4; a chunk takes 1 to 3"):
        ChunkEncoder(tiny_llava(), 3).encode(pixels(4))


def test_a_chunk_is_encoded_without_waiting_for_the_device():
    given = torch.stack(pixels(2))
    with no_host_sync():
        encode_chunk(tiny_llava(), given)


def test_the_tower_stays_recorded_after_transformers_was_asked_for_hidden_states():
    """Which leaves hooks on it for good; a hook of anybody else is run, so nothing is replayed then."""
    model = copy.deepcopy(tiny_llava())
    chunks, programs = ChunkEncoder(model, 2, "graphs"), vision_programs(model)
    fp.encode_images(model, torch.stack(pixels(2)))
    chunks.encode(pixels(2))
    assert any(block._forward_hooks for block in model.model.vision_tower.modules())
    (program,) = programs._programs.values()
    ran: list[int] = []
    program._replay = lambda run=program._replay: ran.append(1) or run()
    chunks.encode(pixels(2))
    assert ran == [1] and vision_programs(model) is programs
    handle = model.model.vision_tower.register_forward_hook(lambda *_: None)
    chunks.encode(pixels(2))
    handle.remove()
    assert ran == [1]


def test_outputs_of_a_chunk_stay_when_the_next_is_encoded():
    """A replay writes to the memory of the one before; here it is written to by hand."""
    chunks = ChunkEncoder(tiny_llava(), 2, "graphs")
    first = chunks.encode(pixels(2))
    before = [outputs.map(torch.clone) for outputs in first]
    programs = vision_programs(tiny_llava())._programs  # of other tests as well, which share the model
    encodings = [program for (what, *_), program in programs.items() if what == "encode"]
    assert encodings
    for program in encodings:
        program._outputs.map(lambda tensor: tensor.zero_())
    chunks.encode(pixels(2, seed=5))
    assert all(same(*pair) for pair in zip(first, before, strict=True))


def test_chunks_are_filled_with_what_comes_and_nothing_is_encoded_twice(monkeypatch):
    """Not even without a cache, as long as it is the same window."""
    images = encoder(image_cache=0, image_chunk=4)
    shown = photos(images, 6)
    sizes: list[int] = []
    encode = images._chunks.encode
    monkeypatch.setattr(images._chunks, "encode", lambda given: sizes.append(len(given)) or encode(given))
    order = [shown[i] for i in (0, 1, 0, 2, 3, 4, 1, 5)]
    images.begin_scan(["t"])
    images.expect(order)
    found = [images.encode(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert sizes == [4, 2] and images.encoded == 6 and images.asked == 8
    assert images.use.hit_rate == pytest.approx(1 - 6 / 8)
    assert not images._held  # nothing is expected any longer
    for i, picture in enumerate(order):
        (alone,) = encode([picture.content])
        assert same(found[i // 2].of_rows(slice(i % 2, i % 2 + 1)), alone)


# -- the cache --------------------------------------------------------------------------------------------------------


def outputs(number: int) -> VisionOutputs:
    return VisionOutputs(torch.full((1, 4, 8), float(number)), torch.full((1, 4, 24), float(number)))


SIZE = outputs(0).nbytes


def scan(cache: ImageCache, order: list[int], task: str = "t") -> float:
    """One pass; the share that was found."""
    cache.begin_scan([task])
    hits = 0
    for number in order:
        if (found := cache.get(number.to_bytes(4))) is None:
            cache.put(number.to_bytes(4), outputs(number))
        else:
            assert int(found.features[0, 0, 0]) == number
            hits += 1
    return hits / len(order)


def recently_used(order: list[int], room: int, passes: int) -> list[float]:
    """The share that a cache of the most recently used finds."""
    kept: OrderedDict[int, None] = OrderedDict()
    rates = []
    for _ in range(passes):
        hits = 0
        for number in order:
            hits += number in kept
            kept[number] = None
            kept.move_to_end(number)
            if len(kept) > room:
                kept.popitem(last=False)
        rates.append(hits / len(order))
    return rates


@pytest.mark.parametrize("room", [10, 50, 90])
def test_repeated_scans_find_as_many_images_as_there_is_room_for(room):
    """The most recently used would find none: each is thrown out just before it is asked."""
    cache, order = ImageCache(room * SIZE, Storage(CPU)), list(range(100))
    assert [scan(cache, order) for _ in range(4)] == [0, room / 100, room / 100, room / 100]
    assert cache.used == room * SIZE
    assert recently_used(order, room, 4) == [0, 0, 0, 0]


def test_the_next_tasks_images_take_the_room_of_the_last_ones():
    cache = ImageCache(50 * SIZE, Storage(CPU))
    for _ in range(2):
        scan(cache, list(range(100)), "pope")
    assert [scan(cache, list(range(100, 200)), "gqa") for _ in range(3)] == [0, 0.5, 0.5]


def test_images_that_two_tasks_share_are_found_by_both():
    cache = ImageCache(100 * SIZE, Storage(CPU))
    scan(cache, list(range(50)), "pope")
    assert scan(cache, list(range(25, 75)), "gqa") == 0.5


def test_images_of_a_task_that_asks_them_no_more_are_given_up():
    cache = ImageCache(50 * SIZE, Storage(CPU))
    scan(cache, list(range(50)))
    found = [scan(cache, list(range(100, 150))) for _ in range(4)]
    assert found[-1] == 1


def test_random_order_finds_the_share_that_there_is_room_for():
    cache, order = ImageCache(30 * SIZE, Storage(CPU)), list(range(100))
    mixed = random.Random(0)
    scan(cache, order)
    for _ in range(3):
        mixed.shuffle(order)
        assert scan(cache, order) == 0.3


def test_without_room_nothing_is_kept():
    cache = ImageCache(0, Storage(CPU))
    assert [scan(cache, [1, 2, 1]) for _ in range(2)] == [0, 0] and len(cache) == 0


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_an_image_that_is_found_is_the_one_that_was_encoded(place, dtype):
    """To the last bit, and in the types that the model computes with, also where it is kept in half precision."""
    images = encoder(image_cache_place=place, image_cache_dtype=dtype)
    shown = photos(images, 3)
    first = images.encode(shown)
    again = images.encode(shown)
    assert images.encoded == 3 and same(first, again)
    assert {name: value.dtype for name, value in again.tensors().items()} == {
        name: value.dtype for name, value in images._chunks.encode([shown[0].content])[0].tensors().items()
    }
    exact = encoder().encode([Picture(shown[i].key, shown[i].content) for i in range(3)])
    assert same(first, exact) == (dtype == "auto")
    torch.testing.assert_close(first.projected, exact.projected, rtol=2**-8, atol=1e-6)
    assert torch.equal(first.cls_attention, exact.cls_attention) and torch.equal(first.keys, exact.keys)


def test_half_precision_takes_half_the_room_of_features():
    whole, half = Storage(CPU), Storage(CPU, dtype=torch.float16)
    assert half.nbytes(outputs(0)) == whole.nbytes(outputs(0)) / 2 == half.stored(outputs(0)).nbytes


def test_only_what_changes_answers_is_part_of_their_identity():
    plain = answer_settings(ModelArguments(), find_family("llava"))
    for same_answers in ({"image_cache": 7}, {"image_cache_place": "host"}, {"image_chunk": 4}):
        assert answer_settings(ModelArguments(**same_answers), find_family("llava")) == plain
    assert answer_settings(ModelArguments(image_cache_dtype="float16"), find_family("llava")) != plain
    assert ModelArguments(image_cache_dtype="float16").canonical() != ModelArguments().canonical()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_cache": -1}, "image_cache: got -1; expected a whole number of at least 0"),
        ({"image_cache": "2GB"}, "image_cache: got '2GB'; expected a whole number"),
        ({"image_cache_place": "disk"}, "image_cache_place: got 'disk'; known: device, host"),
        ({"image_cache_dtype": "int8"}, "image_cache_dtype: got 'int8'; known: auto, float16, bfloat16"),
        ({"image_chunk": 0}, "image_chunk: got 0; expected a whole number of at least 1"),
    ],
)
def test_settings_of_the_image_path_are_checked(arguments, message):
    with pytest.raises(FieldError, match=message):
        ModelArguments.parse(arguments)


# -- one window ahead -------------------------------------------------------------------------------------------------


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_windows_come_in_order_and_one_is_made_ahead():
    started: list[int] = []
    waits: list[float] = []

    def prepare(window):
        started.append(window[0])
        return lambda item: time.sleep(0.001 * (item % 3)) or item * 10

    parts = [list(range(start, start + 5)) for start in range(0, 20, 5)]
    seen = []
    for number, done in enumerate(one_ahead(parts, prepare, waits.append)):
        seen += done
        assert started == [0, 5, 10, 15][: number + 2]  # this window and the next, and no more
    assert seen == [10 * item for item in range(20)] and not workers()
    assert len(waits) == 4 and all(wait >= 0 for wait in waits)


def test_the_first_window_is_small_and_all_questions_are_in_one():
    sizes = [part.stop - part.start for part in windows(70, 2)]
    assert sizes == [2, 4, 8, 16, 16, 16, 8] and list(windows(0, 4)) == []
    assert [i for part in windows(70, 2) for i in range(70)[part]] == list(range(70))


def test_no_thread_is_left_when_the_last_window_is_given():
    """lmms-eval takes the last answer and does not come back for the end."""
    made = one_ahead([[1], [2]], lambda _: lambda item: item, lambda _: None)
    assert next(made) == [1] and next(made) == [2] and not workers()


def test_an_error_comes_at_its_window_the_first_item_first():
    def prepare(window):
        def one(item):
            if item in (6, 8):
                time.sleep(0.02 if item == 6 else 0)
                raise FieldError(f"document {item}", "is damaged")
            return item

        return one

    made = one_ahead([[0, 1], [2, 3], [5, 6, 7, 8]], prepare, lambda _: None)
    assert next(made) == [0, 1] and next(made) == [2, 3]
    with pytest.raises(FieldError, match="document 6: is damaged"):
        next(made)
    assert not workers()


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_threads_end_with_what_uses_them(how):
    done: list[int] = []

    def one(item):
        time.sleep(0.05)
        done.append(item)

    made = one_ahead([[0], list(range(1000))], lambda _: one, lambda _: None)
    next(made)
    began = time.monotonic()
    if how == "closed":
        made.close()
    else:
        timer = threading.Timer(0.1, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(made)
        timer.join()
    assert not workers() and len(done) < 100 and time.monotonic() - began < 20


# -- documents --------------------------------------------------------------------------------------------------------


def jpeg(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def split(*files: bytes | None) -> datasets.Dataset:
    rows = [{"image": None if file is None else {"bytes": file, "path": None}, "q": i} for i, file in enumerate(files)]
    return datasets.Dataset.from_list(
        rows, features=datasets.Features({"image": datasets.Image(), "q": datasets.Value("int64")})
    )


def test_a_file_that_several_documents_show_is_decoded_once(monkeypatch):
    rows = split(jpeg(1), jpeg(1), None, jpeg(2), jpeg(1))
    plain = [rows[i] for i in range(5)]
    decoded: list[int] = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, value, *rest: decoded.append(1) or decode(self, value, *rest)
    )
    documents, memory = Documents(rows), Once()
    found = [documents.read(i, memory) for i in range(5)]
    assert len(decoded) == 2
    for one, other in zip(found, plain, strict=True):
        assert one["q"] == other["q"] and (one["image"] is None) == (other["image"] is None)
        assert one["image"] is None or np.array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
    found[0]["image"].paste((0, 0, 0), (0, 0, 60, 40))  # a task that draws on its picture
    assert np.array_equal(np.asarray(documents.read(1, memory)["image"]), np.asarray(plain[1]["image"]))


def test_a_damaged_file_is_the_error_of_every_document_that_shows_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval sets it
    half = jpeg(1, (200, 150))
    documents, memory = Documents(split(jpeg(2), half[: len(half) // 2], half[: len(half) // 2])), Once()
    for place in (1, 2):
        with pytest.raises(
            FieldError, match=f"^task 't', document {place}: its image cannot be read .image file is truncated"
        ):
            asked = Asked("t", "test", place, "", {}, lambda row, where: single("", [shown(row["image"], where)]))
            asked.conversation(lambda at=place: documents.read(at, memory))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_documents_that_are_no_data_set_or_name_files_are_read_as_they_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    named = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg")]}).cast_column("image", datasets.Image())
    assert Documents(named).read(0, Once())["image"].size == (60, 40)
    assert Documents(["x", "y"]).read(1, Once()) == "y" and Documents(["x", "y"]).number(1) == 1


def test_what_is_made_once_is_made_by_the_first_and_awaited_by_the_others():
    once, made, found = Once(), [], []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    threads = [threading.Thread(target=lambda: found.append(once.get("key", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 8 and made == [1]


def test_half_files_are_refused_while_any_thread_reads(monkeypatch):
    """The switch is Pillow's own, one for all threads: the first to leave must not turn it back on for the others."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    first, second = whole_files(), whole_files()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    second.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}]
)
def test_normalising_by_table_is_the_processors_to_the_last_bit(settings):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, **settings)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    asked = processor(picture, return_tensors="pt")["pixel_values"][0].float()
    assert torch.equal(preprocess(processor, picture), asked)


def test_pictures_encoded_apart_say_what_their_patches_receive():
    images = encoder(image_cache=64)
    shown = photos(images, 3)
    kept = images.encode(shown)
    apart = images.encode_apart(shown, TowerWish(received=True))
    assert kept.received_attention is None
    assert apart.received_attention is not None
    assert apart.received_attention.shape == apart.cls_attention.shape
    torch.testing.assert_close(apart.projected, kept.projected, rtol=1e-4, atol=1e-5)
    assert (images.asked, images.encoded) == (6, 6)
