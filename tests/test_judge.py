"""The judge, against a real server: what is asked, what is tried again, what is kept, what is never said."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from judge_server import JudgeServer as Server
from judge_server import fails, knows, says

from finepruner_lmms.benchmarks.mmbench import circular_hits, static_letter
from finepruner_lmms.judge import client as client_module
from finepruner_lmms.judge import mmvet, settings
from finepruner_lmms.judge.answers import AnswersError, read_answers, score_file, write_answers
from finepruner_lmms.judge.client import ChatClient, JudgeError, JudgeUnavailable
from finepruner_lmms.judge.judgements import Judgements, JudgementsError
from finepruner_lmms.judge.scoring import MMBENCH, MMVET, Scorer
from finepruner_lmms.judge.settings import JudgeServer, completions_url, from_environment, judge_name

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "FINEPRUNER_JUDGE", "FINEPRUNER_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def settings_of(server: Server, **changes) -> JudgeServer:
    return JudgeServer(**{"url": server.url, "model": "judge-1", "retries": 2, "workers": 3} | changes)


def entries(*answers: tuple[str, str, str]) -> list[dict]:
    """`(ground truth, answer, capabilities)` each."""
    return [
        {
            "question_id": f"v1_{number}",
            "question": f"Question {number}?",
            "gt_answer": truth,
            "pred_answer": said,
            "capabilities": needed,
        }
        for number, (truth, said, needed) in enumerate(answers)
    ]


TWELVE = entries(*[("red", "red" if number % 3 else "blue", "rec") for number in range(12)])


def score(judge, answers, file, **options) -> list[float]:
    with Scorer(judge, Judgements(file)) as scorer:
        return [entry["score"] for entry in scorer.score(MMVET, answers, **options)[0]]


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# -- a judge that is asked several times ------------------------------------------------------------------------------


def test_an_answer_may_be_judged_several_times_and_its_score_is_the_mean(tmp_path):
    replies = iter(["0.2", "0.4", "1.0", "0.0", "0.6", "0.8", "0.5"])
    two = TWELVE[:2]
    with Server(lambda *_: says(next(replies))) as server:
        judge = settings_of(server, times=3, workers=1)
        with Scorer(judge, Judgements(tmp_path / "j")) as scorer:
            judged, about = scorer.score(MMVET, two)
        # each answer three times in turn; rounds are (0.2, 0), (0.4, 0.6), (1, 0.8): 10, 50 and 90 percent
        assert [entry["scores"] for entry in judged] == [[0.2, 0.4, 1.0], [0.0, 0.6, 0.8]]
        assert [entry["score"] for entry in judged] == pytest.approx([1.6 / 3, 1.4 / 3])
        found = mmvet.totals(judged)
        assert found["total"] == found["rec"] == pytest.approx(50) and found["spread"] == pytest.approx(40)
        assert about["name"] == "judge-1 ×3" and judge_name(judge) == "judge-1 ×3"
        # what was judged once is the first of the three, and has no spread
        with Scorer(settings_of(server), Judgements(tmp_path / "j")) as scorer:
            once, about = scorer.score(MMVET, judged)
        assert [entry["score"] for entry in once] == [0.2, 0.0] and "spread" not in mmvet.totals(once)
        assert about["name"] == "judge-1" and len(server.requests) == 6


def test_how_often_is_told_by_the_environment_too():
    variables = {"FINEPRUNER_JUDGE": "http://h", "FINEPRUNER_JUDGE_MODEL": "m", "FINEPRUNER_JUDGE_TIMES": "5"}
    assert judge_name(from_environment(variables)) == "m ×5"


@pytest.mark.parametrize("times", [0, 21, "five"])
def test_how_often_is_a_number_from_1_to_20(times):
    with pytest.raises(ValueError, match="times"):
        JudgeServer(url="http://h", model="m", times=times)


# -- a judge that works -----------------------------------------------------------------------------------------------


def test_answers_are_judged_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    memory, seen = tmp_path / "judgements.jsonl", []
    with Server(knows) as server:
        judge = settings_of(server)
        first = score(judge, TWELVE, memory, on_progress=lambda done, total: seen.append((done, total)))
        assert first == [float(number % 3 > 0) for number in range(12)]
        assert len(server.requests) == 12 and seen == [(done, 12) for done in range(13)]
        assert score(judge, TWELVE, memory) == first and len(server.requests) == 12
        # another answer, and another judge, are judged anew; what is known is not
        changed = [TWELVE[0] | {"pred_answer": "dark red"}, *TWELVE[1:]]
        assert score(judge, changed, memory) == [1.0, *first[1:]] and len(server.requests) == 13
        assert score(settings_of(server, model="judge-2"), TWELVE, memory) == first and len(server.requests) == 25
        request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["body"]["model"] == "judge-1" and request["body"]["temperature"] == 0
    (message,) = request["body"]["messages"]
    assert message["role"] == "user" and message["content"].startswith(mmvet.rubric() + "\nQuestion ")
    kept = lines(memory)[0]
    assert kept["model"] == "judge-1-served" and kept["judge"] == "judge-1" and kept["host"] == server.url[7:]
    assert kept["usage"]["prompt_tokens"] == 700 and kept["reply"] in ("0.0", "1.0") and kept["date"] and kept["rubric"]


def test_the_judge_is_shown_what_mm_vet_published():
    # the published text, by its sha256; lmms-eval's copy has a heading and an empty line less
    digest = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
    assert hashlib.sha256(mmvet.rubric().encode()).hexdigest() == digest
    (answered,) = entries(("-1<AND>-5", "x = 3", "math"))
    assert mmvet.case(answered).prompt == f"{mmvet.rubric()}\nQuestion 0? | -1 <AND> -5 | x = 3 | "


@pytest.mark.parametrize(
    "reply, read",
    [("0.5", 0.5), (" 1.0\n\nAll 3 are there", 1), ("**0.7**", 0.7), ("Correctness: 0.3.", 0.3), ("1", 1), ("0", 0)],
)
def test_a_score_is_read(reply, read):
    assert mmvet.read_score(reply) == read


@pytest.mark.parametrize("reply", ["", "good", "1.5", "-0.1", "nan", "50%", "1/10", "0,5", "two of 3, so 0.5", "10"])
def test_what_is_no_score_is_none(reply):
    with pytest.raises(ValueError, match=r"expected a score from 0\.0 to 1\.0"):
        mmvet.read_score(reply)


# -- a judge that does not --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(tmp_path, status):
    with Server(lambda number, _: fails(status) if number <= 2 else says("0.5")) as server:
        assert score(settings_of(server), TWELVE[:1], tmp_path / "j") == [0.5] and len(server.requests) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(tmp_path, form):
    def behave(number, _):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return fails(429, Retry_After="1" if form == "seconds" else date) if number == 1 else says("1.0")

    with Server(behave) as server:
        started = time.monotonic()
        score(settings_of(server), TWELVE[:1], tmp_path / "j")
        assert time.monotonic() - started >= 0.95 and len(server.requests) == 2


def test_a_server_that_asks_us_to_wait_for_hours_is_not_waited_for(tmp_path):
    with Server(lambda *_: fails(429, "quota", Retry_After="7200")) as server:
        with pytest.raises(JudgeUnavailable, match="429 Too Many Requests: 'quota'; it asks us to wait 7200 seconds"):
            score(settings_of(server), TWELVE[:1], tmp_path / "j")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "status, says_what",
    [
        (401, "401 Unauthorized: .*; no key was sent, as OPENAI_API_KEY is not set"),
        (403, "403 Forbidden: .* not set"),
        (404, "404 Not Found: .*; check url and model"),
        (400, r"1 of 1 answers could not be judged, such as\n  v1_0: judge .*400 Bad Request: 'no such"),
    ],
)
def test_a_refusal_is_told_at_once(tmp_path, status, says_what):
    with Server(lambda *_: fails(status, "no such thing")) as server:
        with pytest.raises(JudgeError, match=says_what):
            score(settings_of(server), TWELVE[:1], tmp_path / "j")
        assert len(server.requests) == 1


def test_a_server_that_is_slow_or_gone_is_an_error(tmp_path):
    with Server(knows, delay=0.5) as server, pytest.raises(JudgeUnavailable, match=r"no answer within 0\.1 seconds"):
        score(settings_of(server, timeout=0.1, retries=1), TWELVE[:1], tmp_path / "j")
    with pytest.raises(JudgeUnavailable, match=r"cannot be reached: .* \(tried 3 times\)"):
        score(settings_of(server), TWELVE, tmp_path / "j")
    assert (tmp_path / "j").read_text() == ""


@pytest.mark.parametrize(
    "answer, quoted",
    [
        ((200, {}, "<html>"), "not a chat completion: '<html>'"),
        ((200, {}, '{"error": 1}'), "not a chat completion: '{\"error\": 1}'"),
        (says(None), "an empty message"),
        (says("I would say it is fine"), "but said 'I would say it is fine'"),
        (says("7"), r"expected a score from 0.0 to 1.0, got 7, but said '7'"),
    ],
)
def test_garbage_is_asked_again_and_then_quoted(tmp_path, answer, quoted):
    with Server(lambda *_: answer) as server:
        with pytest.raises(JudgeError) as error:
            score(settings_of(server), TWELVE[:1], tmp_path / "j")
        assert quoted in str(error.value)
        assert [request["body"]["temperature"] for request in server.requests] == [0.0, 0.5, 1.0]
    with Server(lambda number, _: answer if number == 1 else says("0.2")) as server:
        assert score(settings_of(server), TWELVE[:1], tmp_path / "j") == [0.2]


def test_one_bad_answer_does_not_keep_the_others_from_being_judged(tmp_path):
    def behave(number, prompt):
        return fails(400, "filtered") if "Question 5?" in prompt else knows(number, prompt)

    with Server(behave) as server, pytest.raises(JudgeError, match="1 of 12 answers could not be judged"):
        score(settings_of(server), TWELVE, tmp_path / "j")
    assert {line["document"] for line in lines(tmp_path / "j")} == {f"v1_{n}" for n in range(12)} - {"v1_5"}


def test_what_was_judged_before_the_server_died_is_kept(tmp_path):
    memory = tmp_path / "j"
    server = Server(lambda number, prompt: knows(number, prompt) if number <= 7 else fails(503))
    with server, pytest.raises(JudgeUnavailable, match="503"):
        score(settings_of(server, workers=2), TWELVE, memory)
    assert len(lines(memory)) == 7
    memory.write_text(memory.read_text() + '{"key": "torn off in the mid')  # and so was the process
    with Server(knows) as server:
        assert score(settings_of(server), TWELVE, memory) == [float(number % 3 > 0) for number in range(12)]
        assert len(server.requests) == 5
    assert len(lines(memory)) == 12


def test_a_judgements_file_is_held_by_one_and_spoiled_lines_are_named(tmp_path):
    file = tmp_path / "j"
    with Judgements(file), pytest.raises(JudgementsError, match="another process is judging"), Judgements(file):
        pass
    with Server(knows) as server:
        score(settings_of(server), TWELVE[:1], file)
    for spoiled in ("nonsense", '{"key": "a"}', "3"):
        whole = file.read_text().splitlines()[0]
        file.write_text(f"{whole}\n{spoiled}\n")
        with pytest.raises(JudgementsError, match="j:2: not a judgement"), Judgements(file):
            pass


def test_what_is_said_may_hold_any_character(tmp_path):
    said = "red\u2028blue\u0085green\x0b"
    answered = [TWELVE[0] | {"pred_answer": said}]
    file = write_answers(answered, str(tmp_path))
    assert read_answers(file) == answered
    with Server(lambda *_: says(f"0.5 {said}")) as server:
        for _ in range(2):
            outcome, _ = score_file(file, settings_of(server))
            assert outcome["scores"]["total"] == 50
        assert len(server.requests) == 1


def test_a_file_keeps_its_scores_until_another_judge_has_judged_it_whole(tmp_path):
    file = write_answers(TWELVE, str(tmp_path))
    score_file(file, "exact")
    outcome = file.with_name(f"{file.name}.score.json")
    before = outcome.read_bytes()
    with Server(lambda number, prompt: knows(number, prompt) if number < 12 else fails(400)) as server:
        with pytest.raises(JudgeError, match="1 of 12"):
            score_file(file, settings_of(server, retries=0))
        assert outcome.read_bytes() == before
        lines_before = file.with_name("judgements.jsonl").read_text()
    with Server(knows) as server:
        score_file(file, settings_of(server))
        assert len(server.requests) == 1 and outcome.read_bytes() != before
    assert file.with_name("judgements.jsonl").read_text().startswith(lines_before)


def test_threads_that_wait_for_their_next_try_give_up_when_the_judging_is_stopped():
    with Server(lambda *_: fails(503, Retry_After="300")) as server, ChatClient(settings_of(server)) as client:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.ask, "?")
            while not server.requests:
                time.sleep(0.01)
            started = time.monotonic()
            client.stop()
            with pytest.raises(JudgeUnavailable, match="stopped"):
                asked.result(timeout=30)
        assert time.monotonic() - started < 30 and len(server.requests) == 1


# -- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_not_in_an_error_or_file_even_if_the_server_repeats_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    for answer in (fails(401, f"bad key {KEY}"), fails(500, KEY), (200, {}, f"{KEY} is no JSON"), says(f"0.1 {KEY}")):
        with Server(lambda *_, answer=answer: answer) as server:
            judge = settings_of(server, key_env="MY_KEY", retries=0)
            try:
                score(judge, TWELVE[:1], tmp_path / "j")
            except JudgeError as error:
                assert "[key]" in str(error) and KEY not in str(error)
            assert server.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
            assert KEY not in repr(judge) and KEY not in judge.model_dump_json()
    assert (
        KEY not in caplog.text and KEY not in (tmp_path / "j").read_text() and "[key]" in (tmp_path / "j").read_text()
    )
    monkeypatch.setenv("MY_KEY", f"{KEY}\nsecond line")
    with pytest.raises(ValueError, match="MY_KEY: holds a blank") as refused:
        score(judge, TWELVE, tmp_path / "j")
    assert KEY not in str(refused.value)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, full",
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/api", "https://h/api/v1/chat/completions"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai/chat/completions"),
    ],
)
def test_an_address_is_given_in_any_form(given, full):
    assert completions_url(given) == full


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "h"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="expected an address such as"):
        completions_url(url)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@h", f"http://h/v1?key={KEY}", f"http://h/v1#{KEY}"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="belongs in an environment variable") as refused:
        settings.parse_server({"url": url, "model": "m"})
    assert KEY not in str(refused.value)


def test_the_environment_of_a_plain_run():
    assert from_environment({"FINEPRUNER_JUDGE": "later"}) == "later"
    assert from_environment({"FINEPRUNER_JUDGE": "exact"}) == "exact"
    server = {"FINEPRUNER_JUDGE": "http://h/v1", "FINEPRUNER_JUDGE_MODEL": "m", "FINEPRUNER_JUDGE_KEY_ENV": "K"}
    judge = from_environment(server | {"FINEPRUNER_JUDGE_WORKERS": "2"})
    assert isinstance(judge, JudgeServer) and (judge.model, judge.key_env, judge.workers) == ("m", "K", 2)
    for given, wrong in [
        ({}, "FINEPRUNER_JUDGE: MM-Vet needs a judge, .*'later' .*'exact'"),
        ({"FINEPRUNER_JUDGE": "exakt"}, "FINEPRUNER_JUDGE: got 'exakt'"),
        ({"FINEPRUNER_JUDGE": "http://h"}, "FINEPRUNER_JUDGE_MODEL: is missing"),
        (server | {"FINEPRUNER_JUDGE_RETRIES": "many"}, "FINEPRUNER_JUDGE_RETRIES: got 'many'; expected a valid int"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            from_environment(given)


# -- without a judge, and scores by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "truth, said, value",
    [
        ("red", "The star is Red.", 1),
        ("red", "reddish", 0),
        ("-1<AND>-5", "x = -5 or 5", 0.5),
        ("-1<AND>-5", "x=-1 or x=-5", 1),
        ("-1<AND>-5", "x = 1, 5", 0),
        ("2<OR>two", "There are two.", 1),
        ("a cat<AND>a dog<OR>pets", "my dog", 0.5),
        ("a cat<AND>a dog<OR>pets", "Pets!", 1),
        ("the Café", "cafe", 1),
        ("3.5", "3.50", 0),
        ("light blue", "blue light", 0),
        ("red", "", 0),
    ],
)
def test_exact_match(truth, said, value):
    assert mmvet.exact_score(truth, said) == value


def test_totals_and_capabilities_by_hand(tmp_path):
    judge = {"red": "1.0", "two": "0.4", "7": "0.0", "here": "0.6"}
    answers = entries(
        ("red", "red", "rec"), ("two", "2", "rec,math"), ("7", "one", "ocr,spat"), ("here", "there", "ocr,rec,know,gen")
    )

    def behave(_number, prompt):
        return says(judge[prompt.splitlines()[-1].split(" | ")[1]])

    file = write_answers(answers, str(tmp_path))
    with Server(behave) as server:
        outcome, judged = score_file(file, settings_of(server))
    assert [entry["score"] for entry in judged] == [1.0, 0.4, 0.0, 0.6]
    expected = {"total": 50, "rec": 200 / 3, "ocr": 30, "know": 60, "gen": 60, "spat": 0, "math": 40}
    assert outcome["scores"] == pytest.approx(expected) and list(outcome["scores"]) == list(expected)
    written = json.loads(file.with_name(f"{file.name}.score.json").read_text())
    assert written == outcome and written["judge"]["models"] == ["judge-1-served"] and written["questions"] == 4


def test_a_file_of_answers_is_ours_or_lmms_evals(tmp_path):
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours.write_text("".join(json.dumps(entry) + "\n" for entry in TWELVE))
    theirs.write_text("".join(json.dumps({"doc_id": 0, "gpt_eval_score": entry}) + "\n" for entry in TWELVE))
    assert read_answers(ours) == read_answers(theirs) == TWELVE
    for text, wrong in [("", "holds no answers"), ('{"a": 1}\n', ":1: not an answer.*question_id"), ("x\n", ":1: not")]:
        ours.write_text(text)
        with pytest.raises(AnswersError, match=wrong):
            read_answers(ours)


# -- MMBench ----------------------------------------------------------------------------------------------------------


def choice(said: str, right: str = "A", options=("a teddy bear", "a rabbit", None, None), index: int = 1) -> dict:
    entry = {"index": index, "question": "What is it", "answer": right, "category": "c", "prediction": said}
    return entry | dict(zip("ABCD", options, strict=True))


def read_letters(judge: JudgeServer | str, answers: list[dict], file) -> tuple[list[str | None], dict]:
    with Scorer(judge, Judgements(file)) as scorer:
        judged, about = scorer.score(MMBENCH, answers)
    return [entry.get("letter") for entry in judged], about


def test_the_judge_finds_the_letter_of_an_answer_in_words(tmp_path):
    replies = iter(["B", "E", "C", "Z", "A."])
    bunny = choice("my bunny")
    with Server(lambda *_: says(next(replies))) as server:
        judge = settings_of(server, workers=1)
        assert read_letters(judge, [bunny, choice("my spider")], tmp_path / "j")[0] == ["B", "E"]
        assert read_letters(judge, [bunny], tmp_path / "j")[0] == ["B"] and len(server.requests) == 2
        # C is no option here, Z no letter: garbage, until it says one
        assert read_letters(judge, [choice("cuddly")], tmp_path / "j")[0] == ["A"] and len(server.requests) == 5
        asked = server.requests[0]["body"]["messages"][0]["content"]
    assert asked.endswith("Question: What is it\nOptions: A. a teddy bear B. a rabbit\nAnswer: my bunny\nLetter:")
    with Server(lambda *_: says("who knows")) as server, pytest.raises(JudgeError, match=r"one of A, B, E.*who knows"):
        read_letters(settings_of(server), [choice("a moose")], tmp_path / "j")


READABLE = ["B", "B.", "(B)", "B. a rabbit", "The answer is B.", "It is A RABBIT", "E", "D", "a big A."]


def test_the_judge_is_not_asked_where_a_letter_can_be_read_or_nothing_was_said(tmp_path):
    answers = [choice(said) for said in [*READABLE, "", " \n"]]
    with Server(lambda *_: says("A")) as server:
        letters, about = read_letters(settings_of(server), answers, tmp_path / "j")
        assert letters == [None] * len(answers) and server.requests == []
    assert (about["name"], about["models"], about["asked"]) == ("judge-1", [], 0)
    assert [static_letter(entry) for entry in answers] == [*"BBBBBBEDA", None, None]
    # a letter inside a word, that the static scorer guesses from; two options; a letter that may be an article
    unread = ["Dogs", "a rabbit or a teddy bear", "A very big furry thing", "毛绒熊"]
    assert [static_letter(choice(said)) for said in unread] == [None] * 4


@pytest.mark.parametrize("right", ["A", "B"])
def test_what_is_read_is_what_the_static_scorer_counts(right):
    for said in READABLE:
        entry = choice(said, right)
        assert circular_hits([entry]) == {1: int(static_letter(entry) == right)}


def test_a_question_counts_if_its_letters_read_or_judged_are_right_in_every_order():
    orders = [choice("A", "A"), choice("the soft one", "B", index=1_000_001)]
    assert circular_hits(orders) == {1: 0}
    for letter, hit in (("B", 1), ("A", 0), ("E", 0)):
        assert circular_hits([orders[0], orders[1] | {"letter": letter}]) == {1: hit}


def test_mmbench_has_no_string_match_and_wants_whole_entries(tmp_path):
    with pytest.raises(ValueError, match="got 'exact'; there is no string match for the letter"):
        read_letters("exact", [choice("a moose")], tmp_path / "j")
    with pytest.raises(ValueError, match="answer 0: has no 'prediction'; expected index, question"):
        read_letters(
            JudgeServer(url="http://h", model="m"), [{"index": 1, "question": "?", "answer": "A"}], tmp_path / "j"
        )
