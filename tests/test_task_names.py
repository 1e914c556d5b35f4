"""The names of tasks that are none of the ten, against lmms-eval's own reading of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from finepruner_lmms.data.lmms_tasks import folder_tasks, lmms_tasks


@pytest.mark.slow
def test_what_lmms_eval_calls_a_task_a_group_or_a_tag_is_found_without_importing_it():
    from lmms_eval.tasks import TaskManager

    manager, found = TaskManager(), lmms_tasks()
    assert not set(manager.all_tasks) - set(found)
    named = {name for name, about in found.items() if about.members}
    asked = {name for name, about in found.items() if about.file and not about.members}
    assert not set(manager.all_subtasks) - asked
    assert set(manager.all_groups) <= named and set(manager.all_tags) <= named
    assert not set(found) - set(manager.all_tasks)
    for name in manager.all_tags:
        assert set(found[name].members) == set(manager.task_index[name]["task"]), name


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tags_and_data_that_an_include_gives_are_the_tasks(tmp_path, mark):
    (tmp_path / "_common").write_text(f"{mark}tag: seen\ndataset_path: some/where\n", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(f"{mark}include: _common\ntask: a\noutput_type: loglikelihood\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"{mark}include: _common\ntask: b\ndataset_path: here\n", encoding="utf-8")
    found = folder_tasks(tmp_path)
    assert found["seen"].members == ("a", "b") and set(found) == {"a", "b", "seen"}
    assert (found["a"].output_type, found["a"].dataset_path) == ("loglikelihood", "some/where")
    assert (found["b"].output_type, found["b"].dataset_path) == ("generate_until", "here")
    assert Path(found["a"].file) == tmp_path / "a.yaml"


def test_a_name_may_stand_in_an_include(tmp_path):
    (tmp_path / "_common").write_text("task: named\noutput_type: loglikelihood\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("include: _common\noutput_type: generate_until\n", encoding="utf-8")
    assert folder_tasks(tmp_path)["named"].output_type == "generate_until"


def test_a_file_that_is_no_yaml_hides_no_other(tmp_path):
    (tmp_path / "broken.yaml").write_bytes(b"task: broken\nmetric_list: [\n\xff")
    (tmp_path / "half.yaml").write_text("task: half\nmetric_list: [\n", encoding="utf-8")
    (tmp_path / "whole.yaml").write_text("task: whole\n", encoding="utf-8")
    assert set(folder_tasks(tmp_path)) == {"half", "whole"}
