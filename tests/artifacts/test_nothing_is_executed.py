"""No module unpickles, evaluates, unpacks or shells out: what a file says never runs. Held by reading the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import attar

PACKAGE = Path(attar.__file__).parent
REPOSITORY = PACKAGE.parents[1]
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "copyreg"}
NEVER = {
    "eval", "exec", "compile", "__import__",  # code from text
    "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "pty.spawn",
    "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "torch.hub.load", "torch.package.PackageImporter", "torch.jit.load",
    "pandas.read_pickle", "pd.read_pickle", "numpy.fromregex",
    "shutil.unpack_archive",  # names in an archive lead anywhere
}  # fmt: skip
NEVER_METHODS = {"extractall", "extract", "unpack_archive", "read_pickle"}
ONLY_WITH = {  # function -> the keyword it must have, and its value
    "torch.load": ("weights_only", "True"),
    "numpy.load": ("allow_pickle", "False"),
    "numpy.lib.format.read_array": ("allow_pickle", "False"),
}
WITHOUT_WEIGHTS = {"AutoConfig", "AutoTokenizer"}  # whose `from_pretrained` reads JSON alone
NEVER_KEYWORDS = {("shell", "True"), ("trust_remote_code", "True"), ("allow_pickle", "True"), ("weights_only", "False")}
EXCEPT = {("joblib.load", "src/attar/run/fan_out.py")}  # what a run sends to its own worker processes
NEVER |= {"joblib.load"}


def complaints(text: str, where: str) -> Iterator[str]:
    """Yield what a source does that could run, or unpack, what a file says."""
    tree = ast.parse(text)
    names: dict[str, str] = {}  # how a thing is called here -> its whole name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                if alias.name.partition(".")[0] in PICKLERS:
                    yield f"{where}:{node.lineno} imports {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            taken = {alias.name for alias in node.names}
            if (node.module or "").partition(".")[0] in PICKLERS and taken != {"UnpicklingError"}:
                yield f"{where}:{node.lineno} imports {node.module}"
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{where}:{node.lineno} {told}" for told in _wrong_with(node, names, where))


def _wrong_with(call: ast.Call, names: dict[str, str], where: str) -> Iterator[str]:
    first, dot, rest = ast.unparse(call.func).partition(".")
    called = names.get(first, first) + dot + rest
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called in NEVER and (called, where) not in EXCEPT:
        yield f"calls {called}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in NEVER_METHODS:
        yield f"calls .{call.func.attr}"
    if called in ONLY_WITH and keywords.get(ONLY_WITH[called][0]) != ONLY_WITH[called][1]:
        yield f"calls {called} without {'='.join(ONLY_WITH[called])}"
    reads = called.endswith(".from_pretrained") and called.split(".")[-2] not in WITHOUT_WEIGHTS
    if reads and keywords.get("use_safetensors") != "True":
        yield f"calls {called} without use_safetensors=True: weights may lie there as a pickle"
    for pair in NEVER_KEYWORDS & set(keywords.items()):
        yield f"calls {called} with {'='.join(map(str, pair))}"


def sources() -> list[Path]:
    beside = [REPOSITORY / name for name in ("benchmarks", "examples", "scripts", "docs")]
    return sorted(path for folder in (PACKAGE, *beside) if folder.is_dir() for path in folder.rglob("*.py"))


def test_no_source_runs_what_a_file_says():
    assert len(sources()) > 100
    found = [
        told
        for source in sources()
        for told in complaints(source.read_text(), source.relative_to(REPOSITORY).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "from torch import load\nload(f)",
        "import torch as t\nt.load(f)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=flag)",
        "from numpy.lib import format\nformat.read_array(f)",
        "import joblib\njoblib.load(f)",
        "from joblib import load as read\nread(f)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "from yaml import unsafe_load\nunsafe_load(f)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "import os\nos.system(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "from subprocess import Popen\nPopen(text, shell=True)",
        "model.from_pretrained(name, trust_remote_code=True)",
        "model.from_pretrained(name)",
        "archive.extractall(folder)",
        "import shutil\nshutil.unpack_archive(f)",
        "import pandas as pd\npd.read_pickle(f)",
        "import torch\ntorch.hub.load(repo, name)",
    ],
)
def test_the_reading_finds(text):
    assert list(complaints(text, "module.py"))


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)",
        "import subprocess\nsubprocess.run(['ls'])",
        "import json\njson.load(f)",
        "module.eval()",
        "from pickle import UnpicklingError",
        "import re\nre.compile(text)",
        "import torch\ntorch.compile(f)",
        "from attar.artifacts import load\nload(f)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(name)",
        "model.from_pretrained(name, use_safetensors=True)",
    ],
)
def test_the_reading_lets_pass(text):
    assert not list(complaints(text, "module.py"))


def test_only_the_one_module_may_read_what_it_sent():
    text = "import joblib\njoblib.load(f)"
    assert not list(complaints(text, "src/attar/run/fan_out.py"))
    assert list(complaints(text, "src/attar/run/other.py"))
