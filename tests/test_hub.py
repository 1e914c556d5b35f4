"""Hub repositories, served by a small hub on this machine: what is asked for, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hugging_face import saved, shard
from originals import checkpoint

COMMIT = "c" * 40


class Hub:
    """Repositories as folders, spoken to as huggingface_hub speaks to a hub."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0].strip("/")
                for name, folder in hub.repositories.items():
                    if path.startswith(f"api/models/{name}/revision/"):
                        files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                        return self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
                    if path.startswith(f"api/models/{name}/tree/"):
                        files = [
                            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": etag(file)}
                            for file in sorted(folder.iterdir())
                        ]
                        return self.send(json.dumps(files).encode())
                    if path.startswith(f"{name}/resolve/"):
                        file = folder / path.split("/")[-1]
                        if not file.is_file():
                            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
                        if self.command == "GET":
                            hub.fetched.append(f"{name}/{file.name}")
                        return self.send(file.read_bytes(), 200, {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT})
                return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})

            def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.server.shutdown()
    running.server.server_close()


def python(hub: Hub, cache: Path, code: str, offline: str = "0") -> subprocess.CompletedProcess:
    """`code` in a process whose hub is ours."""
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": offline}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


LOAD = """
import torch, finepruner_lmms as fp
from finepruner_lmms.checkpoints.load import read_geometry
print(read_geometry("someone/llava"))
model, processor = fp.load_model("someone/llava")
ids = torch.tensor([[1, 5] + [model.config.image_token_id] * 16 + [7]])
print(model(input_ids=ids, pixel_values=torch.ones(1, 3, 56, 56)).logits[0, -1, :3].tolist())
print(processor.tokenizer.decode([model.config.image_token_id]), model.config.mm_vision_tower)
for name in ("someone/empty", "someone/else", "not a name"):
    try:
        fp.load_model(name)
    except ValueError as error:
        print(error)
print(type(fp.load_model("someone/converted")[1]).__name__)
"""


@pytest.mark.slow
def test_only_what_is_needed_is_fetched(hub, tmp_path):
    """Sharded pickles, the tower in another repository; a second time nothing is asked for, offline as well."""
    target = checkpoint(
        tmp_path, shards=3, tower=False, tokenizer=True, mm_vision_tower="someone/clip-tower", model_type="llava"
    )
    (target / "mm_projector.bin").write_bytes(b"not needed")
    (target / "training_args.bin").write_bytes(b"not needed")
    (tmp_path / "clip_tower" / "flax_model.msgpack").write_bytes(b"not needed")
    hub.repositories = {"someone/llava": target, "someone/clip-tower": tmp_path / "clip_tower"}
    empty = tmp_path / "empty"
    shutil.copytree(target, empty, ignore=shutil.ignore_patterns("*.bin*"))
    hub.repositories["someone/empty"] = empty
    converted = saved(tmp_path / "hugging_face")
    shard(converted)
    (converted / "pytorch_model.bin").write_bytes(b"not needed")
    hub.repositories["someone/converted"] = converted
    done = python(hub, tmp_path / "cache", LOAD)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "(4, 16)" and lines[2] == "<image> someone/clip-tower"
    assert lines[3].startswith("pretrained: cannot load 'someone/empty': weights: ") and "holds none of" in lines[3]
    assert lines[4].startswith(
        "pretrained: cannot read the configuration of 'someone/else': config.json: cannot fetch it"
    )
    assert lines[5].startswith("pretrained: there is no folder 'not a name', and it is no hub id")
    assert lines[6] == "LlavaProcessor"
    ours = [file.removeprefix("someone/converted/") for file in hub.fetched if "converted" in file]
    assert sorted(ours) == sorted(file.name for file in converted.iterdir() if file.name != "pytorch_model.bin")
    fetched = [file for file in hub.fetched if "empty" not in file and "converted" not in file]
    names = {"config.json", "tokenizer.model", "tokenizer_config.json"}
    names |= {"pytorch_model.bin.index.json", *(f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3))}
    assert sorted(fetched) == sorted(
        [f"someone/llava/{name}" for name in names]
        + [f"someone/clip-tower/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
    )
    hub.fetched.clear()
    again = python(hub, tmp_path / "cache", LOAD, offline="1")
    assert again.stdout.splitlines()[:3] == lines[:3] and not hub.fetched
