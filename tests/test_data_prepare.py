"""`finepruner prepare` as a user runs it, against a mirror on this machine that behaves as the network does."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import datasets
import pytest
from hub_content import CHECKPOINT, COMMAND, NAMES, environment, file_of, finepruner, lay_out, repository
from mirror import Mirror, serve, sha256
from typer.testing import CliRunner

from finepruner_lmms.checkpoints.load import read_geometry
from finepruner_lmms.cli import app
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.identity import data_identity
from finepruner_lmms.data.manifest import read_manifest
from finepruner_lmms.data.ready import missing_data
from finepruner_lmms.data.session import in_bytes
from finepruner_lmms.data.task_folders import data_root, folder

POPE = file_of("pope")


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("content")
    lay_out(root)
    return root


@pytest.fixture
def mirror(content, tmp_path):
    """A mirror whose content may be changed."""
    shutil.copytree(content, tmp_path / "hub", copy_function=lambda a, b: Path(b).hardlink_to(a))
    with serve(tmp_path / "hub") as mirror:
        yield mirror


@pytest.fixture
def env(mirror, tmp_path) -> dict[str, str]:
    return environment(mirror, tmp_path / "home")


@pytest.fixture(scope="module")
def prepared(content, tmp_path_factory) -> tuple[Path, Mirror, str]:
    """All benchmarks and a checkpoint, as a dry run says and then as they are fetched."""
    folder = tmp_path_factory.mktemp("prepared")
    with serve(content) as mirror:
        arguments = ["prepare", "--data", folder / "root", "--tasks", ",".join(NAMES), "--checkpoint", CHECKPOINT]
        env = environment(mirror, folder / "home")
        said = finepruner(*arguments, "--dry-run", env=env).stdout
        assert "nothing was written" in said and not (folder / "root").exists() and not mirror.fetched(POPE)
        for name in NAMES:
            assert in_bytes((content / file_of(name)).stat().st_size) in said
        finepruner(*arguments, "--accept-rows", env=env)
    return folder / "root", mirror, said


def offline(*arguments: object, expect: int = 0) -> str:
    """The same command in this process, where the network is switched off; what it printed."""
    done = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
    assert done.exit_code == expect, done.output
    return done.output


def replace(path: Path, data: bytes) -> None:
    """Content of its own, whatever other links the file has."""
    path.unlink()
    path.write_bytes(data)


def names_below(folder: Path) -> list[str]:
    """All files but those that say who holds a lock."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not any(part.endswith(".lock") for part in name.parts))


# -- what is fetched --------------------------------------------------------------------------------------------------


def test_what_is_evaluated_is_fetched_whole_and_nothing_else(prepared, content):
    root, mirror, _ = prepared
    fetched = {path.removeprefix("/cdn/") for method, path, _ in mirror.requests if path.startswith("/cdn/")}
    wanted = {file_of(name, number) for name in NAMES for number in range(len(FACTS[name].tables))}
    assert fetched == wanted | {f"models/{CHECKPOINT}/model.safetensors"}
    assert all(len(mirror.fetched(name)) == 1 for name in fetched)
    for name in NAMES:
        manifest = read_manifest(root / name)
        facts = FACTS[name]
        assert manifest.repo == facts.repo and manifest.revision == mirror.commit("datasets", facts.repo)
        for file in manifest.files:
            assert file.compared and file.sha256 == sha256(root / name / file.path)
            assert (root / name / file.path).read_bytes() == (content / repository(name) / file.origin).read_bytes()
        assert sum(file.rows for file in manifest.files) == sum(manifest.rows.values())
        assert manifest.expected_rows == {table.folder: table.rows for table in facts.tables}
    assert names_below(root / ".incoming") == []
    assert not (root / "checkpoints" / CHECKPOINT / "training_args.bin").exists()


def test_a_login_goes_to_the_hub_and_not_to_where_it_sends_us(prepared):
    assert prepared[1].leaked == []


def test_a_checkpoint_in_a_root_is_one(prepared):
    folder = prepared[0] / "checkpoints" / CHECKPOINT
    assert read_geometry(str(folder)) == read_geometry("demo")


def test_again_there_is_nothing_to_do_even_without_network(prepared):
    root = prepared[0]
    before = {name: (root / name / "manifest.json").read_bytes() for name in NAMES}
    said = offline("--data", root, "--tasks", ",".join(NAMES), "--verify")
    assert said.count("there") == len(NAMES)
    assert {name: (root / name / "manifest.json").read_bytes() for name in NAMES} == before


def test_a_root_has_the_same_identity_wherever_it_is(prepared, tmp_path):
    root = prepared[0]
    shutil.copytree(root / "pope", tmp_path / "pope")
    assert data_identity(str(tmp_path), "pope") == data_identity(str(root), "pope")
    manifest = json.loads((tmp_path / "pope" / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (tmp_path / "pope" / "manifest.json").write_text(json.dumps(manifest))
    assert data_identity(str(tmp_path), "pope") != data_identity(str(root), "pope")


# -- what can go wrong on the way -------------------------------------------------------------------------------------


def test_other_rows_than_known_are_an_error_that_can_be_overruled(mirror, env, tmp_path):
    arguments = ["prepare", "--data", tmp_path / "root", "--tasks", "pope"]
    said = finepruner(*arguments, env=env, expect=1).stdout
    assert "pope: 240 rows, but 9,000 expected (from: POPE paper" in said and "--accept-rows" in said
    assert not (tmp_path / "root" / "pope").exists()
    finepruner(*arguments, "--accept-rows", env=env)
    assert len(mirror.fetched(POPE)) == 1  # what was fetched the first time was kept


def test_a_connection_that_breaks_is_taken_up_where_it_broke(mirror, env, tmp_path):
    size = (mirror.root / POPE).stat().st_size
    mirror.cut, mirror.cuts = 2_000_000, 1000
    finepruner("prepare", "--data", tmp_path / "root", "--tasks", "pope", "--accept-rows", env=env)
    starts = [int(asked.split("=")[1].rstrip("-")) if asked else 0 for asked in mirror.fetched(POPE)]
    assert starts == list(range(0, size, 2_000_000))  # no byte came twice
    assert sha256(tmp_path / "root" / "pope" / Path(POPE).name) == sha256(mirror.root / POPE)


def test_a_server_without_ranges_starts_again(mirror, env, tmp_path):
    mirror.ranges, mirror.cut, mirror.cuts = False, 2_000_000, 2
    finepruner("prepare", "--data", tmp_path / "root", "--tasks", "pope", "--accept-rows", env=env)
    assert len(mirror.fetched(POPE)) == 3
    assert sha256(tmp_path / "root" / "pope" / Path(POPE).name) == sha256(mirror.root / POPE)


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up_and_what_came_is_kept(mirror, env, tmp_path):
    arguments = ["prepare", "--data", tmp_path / "root", "--tasks", "pope", "--accept-rows"]
    mirror.cut, mirror.cuts = 0, 5
    said = finepruner(*arguments, env=env, expect=1).stdout
    assert "no answer 5 times in a row" in said and "0 of " in said
    assert not (tmp_path / "root" / "pope").exists()
    finepruner(*arguments, env=env)


def test_wrong_content_is_thrown_away(mirror, env, tmp_path):
    arguments = ["prepare", "--data", tmp_path / "root", "--tasks", "pope,mme", "--accept-rows"]
    mirror.falsify = {Path(POPE).name}
    shutil.rmtree(mirror.root / repository("mme") / "data")
    said = finepruner(*arguments, env=env, expect=1).stdout
    assert f"the hub declares {(mirror.root / POPE).stat().st_size:,} bytes and {sha256(mirror.root / POPE)}" in said
    assert "mme: failed: lmms-lab-encoder/MME: holds no files like data/test-*.parquet" in said
    assert names_below(tmp_path / "root") == []
    mirror.falsify = set()
    finepruner(*arguments[:3], "--tasks", "pope", "--accept-rows", env=env)


def test_killed_in_the_middle_it_goes_on_from_there(mirror, env, tmp_path):
    command = [*COMMAND, "prepare", "--data", str(tmp_path / "root"), "--tasks", "pope", "--accept-rows"]
    mirror.hold = 2_000_000
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    part = tmp_path / "root" / ".incoming" / "pope"
    deadline = time.monotonic() + 60
    while not (parts := [p for p in part.glob("*.part") if p.stat().st_size > 1_000_000]):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    second = finepruner(*command[3:], env=env, expect=1)  # meanwhile, another
    assert f"pope: is being prepared by process {run.pid} on " in second.stdout
    run.send_signal(signal.SIGKILL)
    run.wait()
    have = parts[0].stat().st_size
    assert names_below(tmp_path / "root") == [f".incoming/pope/{parts[0].name}"]
    mirror.hold = None
    mirror.gate.set()
    problem = str(*missing_data(str(tmp_path / "root"), ["pope"]))
    assert "is not complete: `prepare` was interrupted" in problem
    finepruner(*command[3:], env=env)
    assert mirror.fetched(POPE) == [None, f"bytes={have}-"]
    assert sha256(tmp_path / "root" / "pope" / Path(POPE).name) == sha256(mirror.root / POPE)


def test_a_partial_file_with_other_bytes_is_fetched_anew(mirror, env, tmp_path):
    declared = sha256(mirror.root / POPE)
    part = tmp_path / "root" / ".incoming" / "pope" / f"{Path(POPE).name}.{declared[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * 1000)
    finepruner("prepare", "--data", tmp_path / "root", "--tasks", "pope", "--accept-rows", env=env)
    assert mirror.fetched(POPE) == ["bytes=1000-", None]


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path, monkeypatch):
    from collections import namedtuple

    from finepruner_lmms.data import prepare
    from finepruner_lmms.data.errors import DataError
    from finepruner_lmms.data.hub import Remote
    from finepruner_lmms.data.jobs import task_jobs
    from finepruner_lmms.data.plan import Item, Options, Plan

    (job,) = task_jobs(["pope"], {})
    item = Item(Remote("data/test-00000-of-00001.parquet", 10**12, "0" * 64), "test.parquet", None)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: usage(0, 0, 5 * 10**11))
    with pytest.raises(DataError, match=r"pope: needs 1000\.00 GB, but .* has 499\.73 GB to spare"):
        prepare.carry_out(tmp_path, Plan(job, "c" * 40, (item,), "hub"), Options(), None)


# -- revisions --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_root_changes_only_when_it_is_asked_to(mirror, env, tmp_path):
    arguments = ["prepare", "--data", tmp_path / "root", "--tasks", "pope", "--accept-rows"]
    finepruner(*arguments, env=env)
    first = read_manifest(tmp_path / "root" / "pope")
    table = datasets.Dataset.from_parquet(str(mirror.root / POPE), cache_dir=str(tmp_path / "cache"))
    (mirror.root / POPE).unlink()
    table.select(range(60)).to_parquet(mirror.root / POPE)
    assert "there" in finepruner(*arguments, env=env).stdout
    assert read_manifest(tmp_path / "root" / "pope") == first
    mine = tmp_path / "root" / "pope" / "test" / "mine.parquet"  # as one puts a test split beside it
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    finepruner(*arguments, "--revision", "pope=main", env=env)
    assert mine.read_bytes() == b"mine"
    second = read_manifest(tmp_path / "root" / "pope")
    assert second.rows == {"": 60} and second.revision != first.revision
    commit = mirror.commit("datasets", FACTS["pope"].repo)
    assert "there" in finepruner(*arguments, "--revision", f"pope={commit}", env=env).stdout
    said = finepruner(*arguments, "--revision", "pope=v9", env=env, expect=1).stdout
    assert "revision: lmms-lab-encoder/POPE has no revision 'v9'" in said
    assert read_manifest(tmp_path / "root" / "pope") == second


# -- files that are here already --------------------------------------------------------------------------------------


def test_files_that_are_here_already_are_taken_without_network(content, tmp_path):
    clones = content / "datasets" / "lmms-lab-encoder"  # as the repositories are cloned
    said = offline("--tasks", "pope,gqa", "--accept-rows", "--data", tmp_path / "one", "--from", clones)
    assert said.count("hashes not compared with the hub's") == 2
    demo = data_root("demo")  # as another root
    offline("--tasks", "pope,gqa", "--accept-rows", "--data", tmp_path / "two", "--from", demo)
    roots = (tmp_path / "one", tmp_path / "two")
    for root in roots:
        for name in ("pope", "gqa"):
            manifest = read_manifest(root / name)
            assert manifest.revision is None and not any(file.compared for file in manifest.files)
    for name in ("pope", "gqa"):
        one, two = ({(Path(f.path).parent, f.sha256) for f in read_manifest(root / name).files} for root in roots)
        assert one == two


def test_files_that_are_here_already_are_compared_with_the_hubs(mirror, env, tmp_path):
    mine = tmp_path / "mine" / "POPE" / "data"
    mine.mkdir(parents=True)
    shutil.copyfile(mirror.root / POPE, mine / Path(POPE).name)
    arguments = ["prepare", "--tasks", "pope", "--accept-rows", "--from", tmp_path / "mine"]
    finepruner(*arguments, "--data", tmp_path / "one", env=env)
    assert mirror.fetched(POPE) == [] and read_manifest(tmp_path / "one" / "pope").files[0].compared
    data = bytearray((mine / Path(POPE).name).read_bytes())
    data[5000] ^= 1
    replace(mine / Path(POPE).name, bytes(data))
    said = finepruner(*arguments, "--data", tmp_path / "two", env=env).stdout
    assert "is not what the hub declares; fetching it" in said and mirror.fetched(POPE) == [None]
    assert sha256(tmp_path / "two" / "pope" / Path(POPE).name) == sha256(mirror.root / POPE)


def test_the_hub_cache_is_used(mirror, env, tmp_path):
    code = (
        "from huggingface_hub import hf_hub_download as d; d('lmms-lab-encoder/POPE', 'data/{}', repo_type='dataset')"
    )
    code = code.format(Path(POPE).name)
    subprocess.run([COMMAND[0], "-c", code], env=env, check=True)
    mirror.requests.clear()
    arguments = ["prepare", "--tasks", "pope", "--accept-rows"]
    finepruner(*arguments, "--data", tmp_path / "one", env=env)
    assert mirror.fetched(POPE) == []
    finepruner(*arguments, "--data", tmp_path / "two", env=env | {"HF_HUB_OFFLINE": "1"})
    one, two = (read_manifest(tmp_path / root / "pope") for root in ("one", "two"))
    assert one == two and one.files[0].compared  # a blob is named by the hash that the hub declares
    said = finepruner(
        "prepare", "--tasks", "mme", "--data", tmp_path / "two", env=env | {"HF_HUB_OFFLINE": "1"}, expect=1
    )
    assert "the network is switched off (HF_HUB_OFFLINE)" in said.stdout and "hub cache does not hold" in said.stdout


def test_tables_that_are_not_whole_are_errors(content, tmp_path):
    mine = tmp_path / "mine" / "pope"
    mine.mkdir(parents=True)
    whole = (content / POPE).read_bytes()

    def refused(*names: str, data: bytes = whole) -> str:
        for old in mine.iterdir():
            old.unlink()
        for name in names:
            (mine / name).write_bytes(data)
        arguments = ["--data", tmp_path / "root", "--tasks", "pope", "--accept-rows", "--from", mine.parent]
        said = offline(*arguments, expect=1)
        assert not (tmp_path / "root" / "pope").exists()
        return said

    assert "missing: 00001" in refused("test-00000-of-00002.parquet")
    assert "twice: 00000" in refused("test-00000-of-00001-aa.parquet", "test-00000-of-00001-bb.parquet")
    assert "is not a readable parquet file" in refused("test-00000-of-00001.parquet", data=whole[:5000])
    mme = (content / file_of("mme")).read_bytes()
    assert "image_source is missing; it has the columns" in refused("test-00000-of-00001.parquet", data=mme)
    assert "the network is switched off (HF_HUB_OFFLINE); the hub cache does not" in refused()


def test_a_folder_that_prepare_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "root" / "pope").mkdir(parents=True)
    (tmp_path / "root" / "pope" / "mine.parquet").write_bytes(b"mine")
    said = offline("--data", tmp_path / "root", "--tasks", "pope", expect=1)
    assert "was not made by `prepare`; move it away" in said
    assert (tmp_path / "root" / "pope" / "mine.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--tasks", "popi"], "tasks: unknown task 'popi' (did you mean 'pope'?)"),
        (["--tasks", "pope", "--revision", "mme=main"], "revision: 'mme' is not among the tasks to prepare"),
        (["--tasks", "pope", "--revision", "v1"], "revision: got 'v1'; expected task=revision"),
        (["--checkpoint", "llava"], "checkpoint: got 'llava'; expected owner/name"),
        (["--tasks", "pope", "--from", "nowhere"], "from: 'nowhere' is not a folder"),
    ],
)
def test_requests_that_are_wrong_do_nothing(arguments, text, tmp_path):
    assert text in offline("--data", tmp_path / "root", *arguments, expect=2)
    assert not (tmp_path / "root").exists()


def test_a_table_is_told_by_its_folder():
    for facts in FACTS.values():
        assert len({Path(table.files).parent for table in facts.tables}) == len(facts.tables)


# -- a root that is no longer whole -----------------------------------------------------------------------------------


def test_a_root_that_lost_something_is_refused_and_repaired(prepared, mirror, env, tmp_path):
    root = tmp_path / "root"
    for name in ("pope", "mme"):
        shutil.copytree(prepared[0] / name, root / name)
    config = tmp_path / "m.yaml"
    config.write_text(f"name: m\nmodel: {{pretrained: demo}}\ndata: {root}\ntasks: [mme, pope]\nmethods: [vanilla]\n")

    def refused() -> str:
        done = CliRunner().invoke(app, ["run", str(config), "--output", str(tmp_path / "out")])
        assert done.exit_code == 2 and not (tmp_path / "out").exists()
        return done.output

    file = root / "pope" / Path(POPE).name
    file.write_bytes(file.read_bytes()[:-10])
    text = f"data: {file} has {file.stat().st_size:,} bytes instead of {file.stat().st_size + 10:,}; "
    assert refused().startswith(f"{config}:3:1: {text}")
    with pytest.raises(ValueError, match=re.escape(text)):
        folder(str(root))
    said = finepruner("prepare", "--data", root, "--tasks", "pope", "--accept-rows", env=env).stdout
    assert "preparing it anew" in said and folder(str(root)).is_dir()
    shutil.copyfile(file, extra := file.with_name("more.parquet"))  # would be read with the others
    assert f"data: {extra} is not of this benchmark's files" in refused()
    said = finepruner("prepare", "--data", root, "--tasks", "pope", "--accept-rows", env=env, expect=1).stdout
    assert f"{extra} lies among the files of a benchmark and is none; move it away" in said
    extra.unlink()
    images = root / "gqa" / FACTS["gqa"].tables[1].folder / Path(file_of("gqa", 1)).name
    shutil.copytree(prepared[0] / "gqa", root / "gqa")
    images.unlink()
    finepruner("prepare", "--data", root, "--tasks", "gqa", "--accept-rows", env=env)
    assert mirror.fetched(file_of("gqa")) == [] and mirror.fetched(file_of("gqa", 1)) == [None]
    assert read_manifest(root / "gqa").files == read_manifest(prepared[0] / "gqa").files
    shutil.rmtree(root / "mme")
    assert f"{root / 'mme'} is not there; run `finepruner prepare --data {root} --tasks mme`" in refused()
