#!/usr/bin/env bash
# Make .venv and install Attar in it, with the torch build that suits this machine. Does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamp=.venv/attar-setup.sha256
cpu_index=https://download.pytorch.org/whl/cpu

# What the environment depends on: the metadata of the package, not the settings of the linter beside it.
digest() {
    "$1" - <<'PYTHON'
import hashlib, json, pathlib, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
parts = [project["build-system"], project["project"], project["tool"]["hatch"]]
texts = [json.dumps(parts, sort_keys=True), *(pathlib.Path(n).read_text() for n in ("constraints.txt", "scripts/setup.sh"))]
print(hashlib.sha256("\0".join(texts).encode()).hexdigest())
PYTHON
}

if [ -x .venv/bin/attar ] && [ -f "$stamp" ] && [ "$(digest .venv/bin/python)" = "$(cat "$stamp")" ]; then
    exit 0
fi

if ! command -v "$python" >/dev/null; then
    echo "setup: '$python' was not found; install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $("$python" --version) is too old; Attar needs Python 3.11 or newer: make setup PYTHON=python3.12" >&2
    exit 1
fi
if [ ! -x .venv/bin/python ]; then
    echo "setup: making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        echo "setup: 'python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
fi

# What plain pip would install for torch, as its version ("2.13.0+cpu"); empty when it cannot tell. Reads metadata only.
offered() {
    .venv/bin/python -m pip install --quiet --dry-run --ignore-installed --no-deps --report - \
        --constraint constraints.txt torch 2>/dev/null |
        .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' \
            2>/dev/null || true
}

extra=()
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    echo "setup: found an NVIDIA GPU, installing the GPU build of torch"
elif [ "$(uname -s)" = Linux ]; then
    case "$(offered)" in
    *+cpu*) echo "setup: no NVIDIA GPU, installing the CPU build of torch that pip offers" ;;
    *)
        echo "setup: no NVIDIA GPU, asking $cpu_index for the CPU build of torch"
        echo "setup: (this path was not exercised where Attar is developed; should it fail, install torch by hand)"
        extra=(--extra-index-url "$cpu_index")
        ;;
    esac
fi

echo "setup: installing Attar and its tools (a few minutes the first time)"
.venv/bin/python -m pip install -qq --constraint constraints.txt ${extra[@]+"${extra[@]}"} --editable ".[assets,hf,onnx,dev]"
digest .venv/bin/python >"$stamp"
echo "setup: done; .venv/bin/attar is ready"
