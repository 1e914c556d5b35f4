"""The journal of a cell: kills, damage and other numbers of processes change neither answers nor costs nor speeds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from finepruner_lmms.engine.cost import DecoderSizes, PrefillCost
from finepruner_lmms.lmms import answering
from finepruner_lmms.lmms.batch_sizes import VARIABLE, BatchSizes
from finepruner_lmms.lmms.journal import Answer, Journal, Origin, Written, read_journal
from finepruner_lmms.lmms.meter import BatchTime, ImageUse
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.together import Company, Seat
from finepruner_lmms.matrix.speed import measured

OWNER = "a model and a method"
ANSWER = Answer("yes", 600, 2, 24, (576, 576, 64))
TIME = BatchTime(2, 3, 0.5, 0.2, "eager", 0.7, 0.1, None, ImageUse(2, 1), 2, 2)
QUESTIONS = 9


def origin(rank: int = 0, processes: int = 1, session: str = "s") -> Origin:
    return Origin(session, rank, processes, "a processor")


def journal(folder: Path, rank: int = 0, owner: str = OWNER, session: str = "s") -> Journal:
    return Journal(folder, owner, origin(rank, 2, session))


def lines(folder: Path) -> list[str]:
    """All lines of all files."""
    return [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().split("\n") if line]


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_journal_knows_what_other_processes_wrote(tmp_path):
    journal(tmp_path, 0).add(["a", "b"], [ANSWER, ANSWER], TIME)
    again = journal(tmp_path, 1)
    assert again.known == {"a": ANSWER, "b": ANSWER} and again.lacks(["a", "c"]) and not again.lacks(["b"])
    again.add(["b", "c"], [ANSWER, ANSWER], TIME)
    written = read_journal(tmp_path, OWNER)
    assert written.answers.keys() == {"a", "b", "c"} and len(lines(tmp_path)) == 3 + 2
    assert {(batch.origin.rank, batch.time) for batch in written.batches} == {(0, TIME), (1, TIME)}


def test_no_two_processes_write_to_one_file(tmp_path):
    """Neither two attempts nor two that answer the same cell at once."""
    first, second = journal(tmp_path), journal(tmp_path, session="t")
    for number in range(3):
        first.add([f"a{number}"], [ANSWER], TIME)
        second.add([f"b{number}"], [ANSWER], TIME)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers-rank0-2.jsonl", "answers-rank0.jsonl"]
    assert len(read_journal(tmp_path, OWNER).answers) == 6


def test_answers_of_another_method_are_not_taken_over(tmp_path):
    journal(tmp_path).add(["a"], [ANSWER], TIME)
    other = journal(tmp_path, owner="another method")
    assert other.known == {}
    other.add(["a"], [replace(ANSWER, text="no")], TIME)
    assert read_journal(tmp_path, OWNER).answers == {"a": ANSWER}
    assert read_journal(tmp_path, "another method").answers["a"].text == "no"


def test_any_text_comes_back_as_it_was(tmp_path):
    texts = ["", "\u2028\u2029\x85\n\r\x00", '", "check": "0000000000000000"}', "圖", "\ud800", "é" * 10_000]
    answers = [replace(ANSWER, text=text) for text in texts]
    keys = [str(number) for number in range(len(texts))]
    journal(tmp_path).add(keys, answers, TIME)
    assert read_journal(tmp_path, OWNER).answers == dict(zip(keys, answers, strict=True))


def test_a_batch_counts_when_its_last_line_is_there(tmp_path):
    """At whatever byte a kill cuts the file off, every answer has the time of its batch."""
    for number in range(3):
        journal(tmp_path).add([f"{number}a", f"{number}b"], [ANSWER, ANSWER], TIME)
    (file, *others) = sorted(tmp_path.iterdir(), key=lambda file: (len(file.name), file.name))
    content = file.read_bytes()
    assert len(others) == 2
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        written = read_journal(tmp_path, OWNER)
        assert len(written.answers) == 2 * len(written.batches) == 4
    file.write_bytes(content)
    assert len(read_journal(tmp_path, OWNER).answers) == 6


def test_a_damaged_file_costs_what_is_damaged_and_never_gives_a_wrong_answer(tmp_path):
    answers = {f"key {number}": replace(ANSWER, text=f"answer {number}") for number in range(8)}
    keys = list(answers)
    whole = tmp_path / "whole"
    for start in range(0, 8, 2):
        journal(whole, rank=0).add(keys[start : start + 2], [answers[key] for key in keys[start : start + 2]], TIME)
    content = b"".join(file.read_bytes() for file in sorted(whole.iterdir()))
    draw, lost = random.Random(0), 0
    for trial in range(300):
        folder = tmp_path / str(trial)
        folder.mkdir()
        spoiled = bytearray(content)
        place = draw.randrange(len(spoiled))
        match trial % 5:
            case 0:
                spoiled[place] ^= 1 << draw.randrange(8)
            case 1:
                del spoiled[place : place + draw.randrange(1, 400)]
            case 2:
                spoiled[place:place] = draw.randbytes(draw.randrange(1, 400))
            case 3:
                spoiled[place : place + 50] = bytes(50)
            case 4:
                spoiled[place:place] = spoiled[: draw.randrange(len(spoiled))]
        (folder / "answers-rank0.jsonl").write_bytes(bytes(spoiled))
        read = read_journal(folder, OWNER)
        assert read.answers.items() <= answers.items()
        lost += 8 - len(read.answers)
        mended = journal(folder)
        missing = [key for key in keys if mended.lacks([key])]
        mended.add(missing, [answers[key] for key in missing], TIME)
        assert read_journal(folder, OWNER).answers == answers
    assert 300 < lost < 1500  # what is damaged is noticed, and the rest is kept


def test_what_cannot_be_read_is_set_aside(tmp_path):
    (tmp_path / "a").write_text("no folder")
    journal(tmp_path / "a").add(["a"], [ANSWER], TIME)
    assert read_journal(tmp_path / "a", OWNER).answers == {"a": ANSWER} and (tmp_path / "a.damaged").is_file()
    (tmp_path / "b" / "answers-rank0.jsonl").mkdir(parents=True)
    journal(tmp_path / "b").add(["a"], [ANSWER], TIME)
    assert read_journal(tmp_path / "b", OWNER).answers == {"a": ANSWER}
    assert read_journal(tmp_path / "nowhere", OWNER).answers == {}


def test_costs_do_not_depend_on_the_order_of_answers():
    """To the last bit: means over 40 layers are rounded, and so are their sums."""
    draw = random.Random(0)
    answers = {
        str(n): replace(ANSWER, words=20 + n, entering=tuple(draw.randrange(1, 577) for _ in range(40)))
        for n in range(200)
    }
    sizes, found = DecoderSizes(64, 172, 64, 64), set()
    for _ in range(20):
        order = draw.sample(sorted(answers), len(answers))
        found.add(PrefillCost.of(sizes, Written({key: answers[key] for key in order}, ()).lengths))
    assert len(found) == 1


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm() -> LlavaFinePruner:
    model = LlavaFinePruner(pretrained="demo", batch_size=2, method="random", budget=16, max_new_tokens=2)
    pictures = [Image.effect_noise((60 + 20 * (i % 3), 80), 60).convert("RGB") for i in range(QUESTIONS)]
    model.task_dict = {"t": {"test": [None if i % 5 == 4 else picture for i, picture in enumerate(pictures)]}}
    return model


def requests(rank: int, processes: int, repeats: int = 1, **decoding) -> list[Instance]:
    """The questions of a process, filled up as lmms-eval does it: with its last one."""
    asked = [
        Instance(
            request_type="generate_until",
            arguments=("What is it? " * (1 + i % 4), decoding, lambda p: [] if p is None else [p], i, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": i, "repeats": 1},
        )
        for i in range(QUESTIONS)[rank::processes]
        for _ in range(repeats)
    ]
    return asked + [asked[-1]] * (-(-QUESTIONS // processes) * repeats - len(asked))


class Killed(BaseException):
    """As a kill, but that the test goes on."""


def attempt(lm, folder: Path, number: int, kills: list[int | None], half: bool, monkeypatch) -> dict[int, str]:
    """One process after the other, each killed at its write of that number, before it or in the middle of it."""
    answers: dict[int, str] = {}
    for rank, kill in enumerate(kills):
        own = Journal(folder, OWNER, origin(rank, len(kills), f"attempt {number}"))
        write, written = own._write, []

        def dying(text: str, write=write, written=written, kill=kill) -> None:
            if len(written) == kill:
                if half:
                    write(text[: 2 * len(text) // 3])
                raise Killed
            written.append(text)
            write(text)

        monkeypatch.setattr(own, "_write", dying)
        lm.seat = Seat(own, Company({}))
        asked = requests(rank, len(kills))
        try:
            for request, answer in zip(asked, lm.generate_until(asked), strict=True):
                answers[request.args[3]] = answer.text
        except Killed:
            assert kill is not None
        finally:
            lm.seat = None
    return answers


@pytest.fixture(scope="module")
def undisturbed(lm, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("undisturbed")
        return attempt(lm, folder, 0, [None], False, patch), read_journal(folder, OWNER)


def cost(lm, written) -> PrefillCost | None:
    return PrefillCost.of(lm.decoder_sizes, written.lengths)


@pytest.mark.parametrize("half", [False, True], ids=["before_a_write", "in_a_write"])
@pytest.mark.parametrize(
    "kills",
    [
        [[None, None]],
        [[1, 0], [None]],
        [[0, 2], [None, None]],
        [[1, 1], [1, 0], [None]],
        [[1], [0, 1, 0], [1, None], [None, None, None, None]],
    ],
    ids=["two", "two_then_one", "two_again", "two_two_one", "one_three_two_four"],
)
def test_kills_change_neither_answers_nor_costs(lm, tmp_path, monkeypatch, undisturbed, kills, half):
    expected, whole = undisturbed
    computed: list[int] = []
    real = answering.generate

    def counted(model, pruner, inputs, **options):
        computed.append(len(inputs["input_ids"]))
        return real(model, pruner, inputs, **options)

    monkeypatch.setattr(answering, "generate", counted)
    folder = tmp_path / "here"
    folder.mkdir()
    for number, ranks in enumerate(kills):
        folder = folder.rename(tmp_path / f"mounted elsewhere {number}")
        answers = attempt(lm, folder, number, ranks, half, monkeypatch)
    written = read_journal(folder, OWNER)
    assert answers == expected and len(written.answers) == QUESTIONS
    assert cost(lm, written) == cost(lm, whole) and cost(lm, whole).questions == QUESTIONS - 1
    assert sum(batch.time.rows for batch in written.batches) == QUESTIONS  # the repeated last ones are none
    killed = sum(kill is not None for ranks in kills for kill in ranks)
    assert sum(computed) <= QUESTIONS + 2 * killed  # two rows to a batch
    speed = measured(written, "float32")
    sessions = {batch.origin.session for batch in written.batches}
    assert speed is not None and (speed.questions, speed.attempts) == (QUESTIONS, len(sessions))
    assert 0 < speed.seconds <= sum(batch.time.wall for batch in written.batches)
    assert 0 < speed.waiting < 1 and speed.conditions.processes == max(
        batch.origin.processes for batch in written.batches
    )


def test_answers_that_are_drawn_are_drawn_each_time_and_counted_once(lm, tmp_path):
    texts = []
    for number in range(2):
        lm.seat = Seat(Journal(tmp_path, OWNER, origin(session=str(number))), Company({}))
        asked = requests(0, 1, repeats=2, do_sample=True, temperature=1.5)
        texts.append([answer.text for answer in lm.generate_until(asked)])
        lm.seat = None
    written = read_journal(tmp_path, OWNER)
    assert written.drawn == written.answers.keys() and len(written.answers) == QUESTIONS
    assert all(len(answers) == 2 * QUESTIONS for answers in texts)
    assert {batch.origin.session for batch in written.batches} == {"1"}  # whose answers are kept


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch) -> list[int]:
    """A machine on which more than two prompts at once do not fit; the sizes of all batches that were tried."""
    tried: list[int] = []
    real = answering.generate

    def generate(model, pruner, inputs, **options):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, pruner, inputs, **options)

    monkeypatch.setattr(answering, "generate", generate)
    return tried


def answered(lm, folder: Path) -> tuple[list[str], str]:
    """What is answered, and what the measured speed says of its conditions."""
    lm.seat = Seat(Journal(folder, OWNER, lm.origin), Company({}))
    asked = requests(0, 1)
    answers = [answer.text for answer in lm.generate_until(asked)]
    lm.seat = None
    return answers, str(measured(read_journal(folder, OWNER), "float32").conditions)


def test_a_batch_that_does_not_fit_is_halved_and_that_is_remembered(lm, tmp_path, monkeypatch, undisturbed, small):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "batch-sizes.jsonl"))
    settings = {"pretrained": "demo", "batch_size": 8, "method": "random", "budget": 16, "max_new_tokens": 2}
    first = LlavaFinePruner(**settings)
    first.task_dict = lm.task_dict
    expected = [undisturbed[0][number] for number in range(QUESTIONS)]
    answers, conditions = answered(first, tmp_path / "first")
    assert answers == expected and "batch 2 (memory ran out with 8)" in conditions
    assert small[:3] == [8, 4, 2] and set(small[2:]) <= {1, 2}
    assert first.images.use.asked == QUESTIONS - 1  # what is asked again after all was not asked before

    small.clear()
    later = LlavaFinePruner(**settings)  # another process, another cell
    later.task_dict = lm.task_dict
    assert answered(later, tmp_path / "later")[0] == expected and set(small) <= {1, 2}

    small.clear()
    later.configure(method="random", budget=32)  # which may fit
    assert answered(later, tmp_path / "other")[0] and small[0] == 8


def test_one_prompt_that_does_not_fit_is_an_error(lm, tmp_path, monkeypatch):
    def generate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(answering, "generate", generate)
    monkeypatch.setattr(lm, "_host", replace(lm._host, sizes=BatchSizes(None)))
    with pytest.raises(torch.OutOfMemoryError):
        list(lm.generate_until(requests(0, 1)))


def test_damaged_batch_sizes_are_found_out_again(tmp_path):
    file = tmp_path / "sizes"
    sizes = BatchSizes(file)
    assert sizes.most("a", 16) == 16 and sizes.ran_out("a", 16) == 8 and sizes.ran_out("a", 8) == 4
    assert BatchSizes(file).most("a", 16) == 4 and BatchSizes(file).most("a", 2) == 2
    assert BatchSizes(file).most("b", 16) == 16
    file.write_bytes(file.read_bytes()[:-9] + b"\xff\x00 9" + b'\n{"setting": "a", "prompts": 1}\n')
    assert BatchSizes(file).most("a", 16) == 8
    assert sizes.ran_out("b", 16) == 8 and BatchSizes(file).most("b", 16) == 8
    assert BatchSizes(tmp_path).most("a", 16) == 16 and BatchSizes(tmp_path).ran_out("a", 16) == 8
