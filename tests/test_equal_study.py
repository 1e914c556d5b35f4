"""A study of guides at equal budgets: what it measures is what the methods do, and its tables say what was measured."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.errors import FieldError
from finepruner_lmms.statistics.differences import Difference

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from head_study import chunks, equal, methods, report
from head_study.guides import FASTV, ORACLE, Seen, guides
from head_study.parts import Agenda, Part, choice_name, read_part, settings
from head_study.published_order import agreement, ours, published
from head_study.results import Choice, Results
from head_study.study import ALL, Study, behind, read_study
from head_study.worlds import questions

ROOT = Path(__file__).parents[1]
CHAIN = "scope+finepruner first=110 layer=12 head_strategy=recommended"
LABEL = CHAIN.replace(" first=110", "")
SMALL = {
    "world": "easy",
    "models": {"one": "demo"},
    "scenes": {"tuning": 1, "test": 2},
    "per_scene": 1,
    "chunk": 1,
    "budgets": [64],
    "layers": [11],
    "strategies": {"layers": [20], "heads": [2]},
    "controls": 1,
    "random": 2,
    "methods": [
        {"method": "scope+finepruner", "first": 110, "layer": 12, "head_strategy": "recommended"},
        {"method": "fastv", "layer": 1},
        "hiprune",  # wants an earlier layer of the tower, and the next one the later layer's whole attention
        "prunesid",
        {"method": "fastv+finepruner", "layer": 1, "head_strategy": "profile", "profile": "$evidence"},
    ],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Study, Path]:
    out = tmp_path_factory.mktemp("study")
    study = Study.model_validate(SMALL)
    for own in (1, 0):  # two processes would do as much
        equal.run(study, "one", "demo", out, own, 2, "cpu")
    return study, out


def test_guides_are_what_the_engine_answers(measured):
    study, out = measured
    for split in ("tuning", "test"):
        for scenes in study.parts(split):
            part = read_part(equal.part_file(out, "one", split, scenes), study.identity)
            place = {name: number for number, name in enumerate(part.names.tolist())}
            pairs = {
                f"scope/11/64/{report.NORMALISED}": choice_name("method", 0, 64, CHAIN),
                f"{ALL}/0/64/{FASTV}": choice_name("method", 0, 64, "fastv layer=1"),
            }
            for guide, engines in pairs.items():
                one, other = place[guide], place[engines]
                assert part.right[one].tolist() == part.right[other].tolist()
                assert part.evidence[one].tolist() == part.evidence[other].tolist()
                assert part.average[one] == part.average[other]
            everything = part.evidence[place[choice_name("vanilla", 0, 0, "vanilla")]]
            assert np.nanmin(everything) == 1 and (part.evidence[place[f"{ALL}/0/64/{ORACLE}"]] == everything).all()


def test_what_is_measured_is_not_measured_again(measured, monkeypatch):
    study, out = measured
    monkeypatch.setattr(equal, "measure", lambda *_: pytest.fail("measured again"))
    equal.run(study, "one", "demo", out, 0, 1, "cpu")
    for less in ({"methods": SMALL["methods"][1:]}, {"layers": []}):
        equal.run(Study.model_validate(SMALL | less), "one", "demo", out, 0, 1, "cpu")
    other = Study.model_validate(SMALL | {"random": 3})
    with pytest.raises(ValueError, match="is of another study"):
        Results(other, out, "test")
    larger = Study.model_validate(SMALL | {"scenes": {"tuning": 1, "test": 3}})
    with pytest.raises(ValueError, match="is not there; head_study"):
        Results(larger, out, "test")
    fewer = Study.model_validate(SMALL | {"scenes": {"tuning": 1, "test": 1}})
    assert Results(fewer, out, "test").scenes.tolist() == Results(study, out, "test").scenes.tolist()[:1]


def test_a_study_that_grows_is_asked_what_is_new_alone(measured, tmp_path, monkeypatch):
    study, out = measured
    shutil.copytree(out / "one", tmp_path / "one")
    methods = [{"method": "fastv", "layer": 2}, *SMALL["methods"], "random", {"method": "blind", "budget": 0}]
    grown = Study.model_validate(SMALL | {"layers": [11, 5], "budgets": [64, 96], "methods": methods})
    with pytest.raises(
        ValueError, match=r"one: a part has not been asked the guides at all/0/96, .* and 11 more; head_s"
    ):
        Results(grown, tmp_path, "test")
    agendas = []

    def asked(*given):
        agendas.append(given[-1])
        return chunks.measure(*given)

    monkeypatch.setattr(equal, "measure", asked)
    equal.run(grown, "one", "demo", tmp_path, 0, 1, "cpu")
    assert len(agendas) == 3 and not any(agenda.vanilla for agenda in agendas)
    assert {(one.p, one.budget) for one in agendas[0].drops} == {(5, 64), (11, 96), (0, 96), (5, 96)}
    new = [(label, budget) for label, budget, _ in agendas[0].methods if budget == 64 or not budget]
    assert new == [("fastv layer=2", 64), ("random", 64), ("blind", 0)]
    before, after = Results(study, out, "test"), Results(grown, tmp_path, "test")
    assert set(before.names) < set(after.names) and after.names[0] == before.names[0]
    assert next(one.guide for one in after.choices if one.start == "method" and one.budget == 64) == "fastv layer=2"
    for name in before.names:
        assert after.percents(name) == before.percents(name) and after.average[name] == before.average[name]
    fresh = tmp_path / "fresh"
    equal.run(grown, "one", "demo", fresh, 0, 1, "cpu")
    whole = Results(grown, fresh, "test")
    assert whole.names == after.names
    for name in whole.names:
        assert whole.percents(name) == after.percents(name)
        assert whole.evidence(name) == pytest.approx(after.evidence(name), nan_ok=True)
    assert after.average[choice_name("method", 0, 0, "blind")] == 0


def test_a_method_whose_default_changed_is_asked_anew(measured):
    study, out = measured
    part = read_part(equal.part_file(out, "one", "test", range(1)), study.identity)
    profiles = equal.profile_files(out, "one", study)
    assert not part.agenda(study, 32, profiles)
    place = part.names.tolist().index(choice_name("method", 0, 64, "hiprune"))
    changed = part.settings.copy()
    changed[place] = settings(fp.build_pruner("hiprune", budget=64, alpha=0.5))
    agenda = replace(part, settings=changed).agenda(study, 32, profiles)
    assert [label for label, *_ in agenda.methods] == ["hiprune"] and not agenda.drops and not agenda.vanilla
    other = replace(part, right=~part.right)
    one = {key: getattr(other, key)[[place]] for key in ("names", "settings", "right", "evidence", "average")}
    with pytest.raises(ValueError, match="the questions are not those of the part"):
        part.joined(replace(part, kinds=part.kinds[::-1] + "?"))
    joined = replace(part, settings=changed).joined(replace(part, **one))
    assert sorted(joined.names) == sorted(part.names)
    assert joined.right[-1].tolist() == (~part.right[place]).tolist() and joined.settings[-1] == part.settings[place]


def test_guides_are_asked_anew_where_a_profile_is_another(measured, tmp_path):
    study, out = measured
    part = read_part(equal.part_file(out, "one", "test", range(1)), study.identity)
    shutil.copytree(out / "one", tmp_path / "one")
    profiles = equal.profile_files(tmp_path, "one", study)
    assert not part.agenda(study, 32, profiles)
    file = profiles["evidence"]
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"weights": found["weights"][:3]}))
    agenda = part.agenda(study, 32, profiles)
    assert agenda.drops == study.drops(32) and [label for label, *_ in agenda.methods] == [
        "fastv+finepruner layer=1 head_strategy=profile profile=$evidence"
    ]
    with pytest.raises(ValueError, match="one: a part has not been asked the guides at all/0/64, "):
        Results(study, tmp_path, "test")


def test_a_profile_of_other_questions_is_refused(measured):
    _, out = measured
    more = Study.model_validate(SMALL | {"scenes": {"tuning": 2, "test": 2}})
    with pytest.raises(ValueError, match=r"is of evidence on 1 questions .* the study asks evidence on 2 questions"):
        equal.run(more, "one", "demo", out, 0, 1, "cpu")


def test_models_are_compared_by_what_all_of_them_were_asked(measured, tmp_path, capsys):
    study, out = measured
    profile = f"{ALL}/0/64/profile evidence"  # where another model's profile names no head of that layer
    both = study.model_copy(update={"models": {"one": "demo", "two": "demo"}})
    for model in both.models:
        (tmp_path / model).mkdir()
        shutil.copy(equal.profile_file(out, "one", "evidence"), tmp_path / model)
        for scenes in both.parts("test"):
            part = read_part(equal.part_file(out, "one", "test", scenes), study.identity)
            assert profile in part.names
            kept = np.flatnonzero((part.names != profile) | (model == "two"))[:: 1 if model == "one" else -1]
            rows = {key: getattr(part, key)[kept] for key in ("names", "settings", "right", "evidence", "average")}
            replace(part, **rows).save(equal.part_file(tmp_path, model, "test", scenes), study.identity)
    alone, found = Results(study, out, "test"), Results(both, tmp_path, "test")
    assert found.left_out == [profile] and profile not in found.names and profile in alone.names
    for name in found.names:
        assert found.percents(name) == [alone.percent(name)] * 2 and found.average[name] == alone.average[name]
        assert found.evidence(name) == pytest.approx(alone.evidence(name), nan_ok=True)
    found.say_left_out()
    assert capsys.readouterr().err == f"left out, not asked of every model: {profile}\n"


def test_what_the_model_cannot_serve_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(equal, "measure", lambda *_: pytest.fail("measured"))
    study = Study.model_validate(SMALL | {"profiles": [], "methods": ["scope", "cdpruner"]})
    with pytest.raises(FieldError, match="needs the text tower"):
        equal.run(study, "one", "demo", tmp_path, 0, 1, "cpu")


@pytest.mark.slow
def test_the_crowded_worlds_model_answers_from_as_many_tokens_as_methods_before_it_leave():
    """An earlier one had 3 to 8 of 24 right from 248 or 256 tokens in closed ranks, whatever they showed."""
    counts = [64, 160, 240, 248, 256, 264, 272, 320]
    asked = {"world": "hard", "methods": [{"method": "divprune", "budget": counts}], "profiles": [], "per_scene": 3}
    study = Study.model_validate(SMALL | asked)
    model, processor = fp.load_model("demo-hard")
    part = chunks.measure(model, processor, study, "tuning", range(8), {}, Agenda(True, [], study.pruners()))
    everything, *right = part.right.sum(1).tolist()
    assert everything >= 20
    assert dict(zip(counts, right, strict=True)) == {count: pytest.approx(everything, abs=4) for count in counts}


def test_every_table_has_its_place_in_the_pages(measured, tmp_path, monkeypatch):
    study, out = measured
    docs = [tmp_path / "head_study.md", tmp_path / "head_study_equal.md"]
    for doc, page in zip(docs, ("head_study.md", "appendix/head_study_equal.md"), strict=True):
        doc.write_text((ROOT / "docs" / page).read_text())
    file = tmp_path / "study.yaml"
    file.write_text(study.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["report", str(file), "--out", str(out), "--doc", *map(str, docs)])
    report.main()
    text = "".join(doc.read_text() for doc in docs)
    assert f"| `{CHAIN}` |" in text and "profile=$evidence` |" in text
    assert "| one | evidence |" in text and "| 64 | 11 | 110, 36 |" in text
    assert {picture.name for picture in (tmp_path / "head_study").iterdir()} == {
        "equal_layers.png",
        "equal_budgets.png",
    }


def test_methods_are_in_the_published_order_or_not(measured):
    there = published(64)
    assert there["fastv"] == 71.9 and there["divprune"] == pytest.approx((94.8 + 93.8 + 94.8 + 100 * 60.9 / 64.9) / 4)
    assert there["eadp"] == pytest.approx(100 * 62.2 / 64.9)  # printed as a mean score, beside that of all tokens
    assert agreement({"fastv": 1.0, "sparsevlm": 2.0, "tops": 3.0, "unheard of": 9.0}, there) == (
        1.0,
        ["tops", "sparsevlm", "fastv"],
    )
    assert agreement({"fastv": 3.0, "sparsevlm": 2.0, "tops": 1.0}, there)[0] == -1.0
    assert np.isnan(agreement({"fastv": 3.0, "tops": 1.0}, there)[0])
    study, out = measured
    found = Results(study, out, "test")
    here = ours(found, 64)
    assert set(here) == {"scope+finepruner", "fastv", "hiprune", "prunesid", "fastv+finepruner"}
    assert here["fastv"] == 100 * found.percent(choice_name("method", 0, 64, "fastv layer=1")) / found.percent(
        choice_name("vanilla", 0, 0, "vanilla")
    )
    kinds = [found.percent(f"{ALL}/0/64/{ORACLE}", kind) for kind in found.kinds]
    assert np.mean(kinds) == found.percent(f"{ALL}/0/64/{ORACLE}")


def test_the_page_of_methods_says_what_was_measured(measured, tmp_path, monkeypatch):
    study, out = measured
    page, file = tmp_path / "hard_methods.md", tmp_path / "study.yaml"
    page.write_text((ROOT / "docs" / "hard_methods.md").read_text())
    file.write_text(study.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["methods", str(file), "--out", str(out), "--doc", str(page)])
    methods.main()
    found = Results(study, out, "test")
    right, kept = (of(choice_name("method", 0, 64, CHAIN)) for of in (found.percent, found.evidence))
    whole = found.percent(choice_name("vanilla", 0, 0, "vanilla"))
    assert f"| `{LABEL}` | {right:.1f}, {100 * right / whole:.0f} % ({kept:.0f} %) |" in page.read_text()
    assert (tmp_path / "hard_methods.png").stat().st_size > 5_000
    monkeypatch.setattr(methods, "_OURS", LABEL)
    gain = found.minus(choice_name("method", 0, 64, CHAIN), f"{ALL}/0/64/{FASTV}")
    assert list(methods.models(found, [64]))[-1] == (
        f"| `one` | {whole:.1f} | {gain.value:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] |"
    )
    (line,) = list(methods.versus(found, [64]))[2:]
    p = "" if gain.p is None else f", p {gain.p:.2g}"  # alone in its family
    assert line == f"| `fastv` | {gain.value:+.1f} ± {gain.error or 0:.1f} ({gain.value:+.1f}){p} |"


class Asked:
    """Answers as `methods` reads them: each choice right in so many percent."""

    models = ("one", "two")

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.names = scores, list(scores)
        self.choices = [Choice.of(name) for name in scores]

    def percent(self, name):
        return self.scores[name]

    def evidence(self, name):
        return 50.0

    def minus(self, first, second, *, test=True, models=None):
        value = self.scores[first] - self.scores[second]
        p = 10 ** -abs(value)
        return Difference(value, 1.0, value - 2, value + 2, p, 0, 0, 0, 0)

    def own(self, first, second):
        return [self.minus(first, second)] * 2


def test_rows_have_one_label_at_all_budgets_and_columns_of_their_own():
    base, scores = f"{ALL}/1/64/{FASTV}", {"vanilla/0/0/vanilla": 90.0}
    scores |= {base: 70.0, base.replace(FASTV, ORACLE): 90.0}
    asked = {
        64: {"visualheads": 89.0, "tops": 88.6, "mmtok+coreprune first=128": 87.0},
        32: {"mmtok+coreprune first=64": 86.0},
        192: {"visualheads": 89.5, "pool": 20.0},
        0: {"blind": 30.0},
    }
    asked[64] |= {"random seed=0": 40.0, "random seed=1": 50.0}
    for budget, rows in asked.items():
        scores |= {choice_name("method", 0, budget, label): right for label, right in rows.items()}
    found = Asked(scores)
    lines = list(methods.table(found, [64]))
    assert lines[0] == "| method | 192 tokens | 64 tokens | 32 tokens |"
    order = ["oracle: the tokens asked about", "`visualheads`", "`tops`", "`mmtok+coreprune`", "`fastv`", "`random`"]
    assert [line.split(" | ")[0][2:] for line in lines[3:]] == [*order, "`blind`", "`pool`"]
    assert lines[4] == "| `visualheads` | 89.5, 99 % (50 %) | 89.0, 99 % (50 %) |  |"
    assert lines[6] == "| `mmtok+coreprune` |  | 87.0, 97 % (50 %) | 86.0, 96 % (50 %) |"
    assert lines[8].startswith("| `random` |  | 45.0, ") and lines[9].count("30.0, 33 %") == 3
    several = Asked(scores | {choice_name("method", 0, 64, "mmtok+coreprune first=96"): 1.0})
    assert "mmtok+coreprune first=128" in methods.named(several, 64) and "mmtok+coreprune" not in methods.named(
        several, 32
    )


def test_each_difference_has_its_own_chance_after_holm():
    base, scores = f"{ALL}/1/64/{FASTV}", {"vanilla/0/0/vanilla": 90.0}
    scores |= {base: 70.0, choice_name("method", 0, 64, "visualheads"): 89.0}
    scores |= {choice_name("method", 0, 64, "tops"): 88.0, choice_name("method", 0, 64, "mmtok"): 89.04}
    assert list(methods.versus(Asked(scores), [64]))[2:] == [
        "| `fastv` | +19.0 ± 1.0 (+19.0, +19.0), p < 0.001 |",  # 3e-19
        "| `tops` | +1.0 ± 1.0 (+1.0, +1.0), p 0.2 |",  # 0.1, of two that are left
        "| `mmtok` | +0.0 ± 1.0 (+0.0, +0.0), p 0.91 |",  # of one
    ]


@pytest.mark.parametrize("budget", [192, 128, 64, 32])
@pytest.mark.parametrize("p", [1, 7, 11, 15, 24])
def test_a_drop_is_on_its_budget(p, budget):
    drop = behind("scope", p, budget, 32)
    chain = fp.build_pruner("scope+fastv", first=drop.first, budget=budget, layer=p + 1)
    assert sum(chain.schedule(32, 576)) / 32 == drop.average(32)
    assert abs(drop.average(32) - budget) <= 0.5 and drop.retained == pytest.approx(drop.first / 3, abs=2)


def test_wrong_studies_are_refused(tmp_path):
    file = tmp_path / "study.yaml"
    for wrong, match in (
        ({"first": "fastv"}, "does not choose before the model"),
        ({"methods": ["fastv", "tobs"]}, "tobs"),
        ({"seeds": 3}, "seeds"),
        ({"kinds": ["color", "colour"]}, "kinds: got 'colour'"),
        ({"profiles": ["gradient"]}, "profiles"),
        ({"methods": [{"method": "fastv", "rows": "$mass"}]}, "is none of profiles"),
    ):
        file.write_text(json.dumps(SMALL | wrong))
        with pytest.raises((FieldError, ValueError), match=match):
            read_study(file)
    with pytest.raises(FieldError, match="no layer follows it"):
        behind("scope", 31, 64, 32)
    assert equal.share("2/8") == (1, 8)
    for text in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(FieldError, match="which of how many"):
            equal.share(text)


def test_the_studies_of_the_repository_are_read():
    files = sorted((ROOT / "scripts" / "head_study").glob("*.yaml"))
    assert {file.stem for file in files} >= {"hard", "methods", "layers", "few"}
    for file in files:
        study = read_study(file)
        assert study.drops(32)
        for _, _, pruner in study.pruners():
            assert pruner.schedule(32, 576)
    assert read_study(ROOT / "scripts" / "head_study" / "hard.yaml").scenes.test >= 300


def test_a_part_of_a_deck_is_that_of_the_whole(tokenless):
    whole = list(questions(*tokenless, "hard", "tuning", range(4), 2))
    parts = [
        *questions(*tokenless, "hard", "tuning", range(2), 2),
        *questions(*tokenless, "hard", "tuning", range(2, 4), 2),
    ]
    assert [(one.scene, one.ids, one.answer) for one in whole] == [(one.scene, one.ids, one.answer) for one in parts]
    assert all(one.answer[-1] == 2 and "told" not in one.kind for one in whole)


@pytest.fixture(scope="module")
def tokenless():
    """The embedded model's processor and configuration."""
    model, processor = fp.load_model("demo")
    return processor, model.config


def test_only_the_kinds_that_a_study_names_are_asked(tokenless):
    asked = [questions(*tokenless, "hard", "tuning", range(2), 3, kinds=kinds) for kinds in ((), ("read", "exist"))]
    every, some = ({one.kind for one in found} for found in asked)
    assert some == {"read", "exist"} and len(every) > 3


def test_controls_and_oracles_are_no_candidates():
    seen = Seen(torch.rand(2, 13, 4, 30).softmax(-1), torch.zeros(2, 30), torch.zeros(2, 30), "")
    study = Study.model_validate(SMALL | {"strategies": {"layers": [11], "heads": [2]}})
    names = {name for name, _ in guides(seen, behind("scope", 11, 64, 32), study, {})}
    found = {name for name in names if Choice("scope", 11, 64, name).candidate}
    assert names - found == {FASTV, ORACLE, "oracle: 2 heads", "random: 0", "random: 1"}
    assert sum(name.startswith("strategy") for name in found) == 24 and "consensus: doc" in found


def test_parts_are_whole(tmp_path):
    one = np.zeros((1, 2))
    part = Part(np.array(["a"]), np.array([""]), one > 0, one, one[0], one[0], one[0], np.array(32))
    part.save(tmp_path / "x.npz", "identity")
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
    assert read_part(tmp_path / "x.npz", "identity").names.tolist() == ["a"]
