"""What `attar doctor` says: versions, devices, compiler, who multiplies, the data found here and the plans in force."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from attar import files
from attar.run import plan
from attar.run.provenance import provenance
from attar.spec import to_json


def report(calibrate: bool = False) -> dict[str, Any]:
    """Return what this machine offers; with `calibrate`, time it first and keep its table in ATTAR_HOME/plans.toml.

    Data sources are looked for, not loaded.
    """
    from attar.run import products
    from attar.run.calibrate import SIZES, calibrated, table_text

    path = files.home() / "plans.toml"
    if calibrate:
        text = table_text(calibrated())
        with files.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, text)
    about = provenance()
    return {
        "versions": about["versions"],
        "processor": about["machine"]["processor"],
        "cores": plan.available_cores(),
        "devices": _devices(),
        "compiler": plan.has_compiler(),
        "products": "oneDNN" if products.pays() else "torch's own",
        "home": str(files.home()),
        "plans": str(path) if path.exists() else "shipped; 'attar doctor --calibrate' times this machine",
        "plan": [{"pixels": size, **to_json(plan.choose(size))} for size in SIZES],
        "data": _data(),
    }


def _devices() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count))]


def _data() -> list[dict[str, Any]]:
    """Return every source with whether it is there, and where or why not."""
    from attar.data.idx import DEBIAN_FOLDER, NAMES

    folder = Path(os.environ.get("ATTAR_FASHION_MNIST", DEBIAN_FOLDER)).expanduser()
    wanted = [name for pair in NAMES.values() for name in pair]
    missing = [name for name in wanted if not any((folder / f"{name}{end}").exists() for end in ("", ".gz"))]
    where = f"{folder} lacks {', '.join(missing)}; it may come from the hub" if missing else str(folder)
    hub = importlib.util.find_spec("datasets") is not None
    return [
        {"source": "fashion-mnist-mini", "found": True, "where": "in the package"},
        {"source": "fashion-mnist", "found": not missing, "where": where},
        {"source": "digits", "found": True, "where": "in scikit-learn"},
        {"source": "folder:PATH, idx:PATH, npz:PATH", "found": True, "where": "any path"},
        {"source": "hf:NAME, parquet:PATH", "found": hub, "where": "datasets" if hub else "pip install 'attar[hf]'"},
    ]
