"""`make demo`: distil the embedded pictures to ten a class, judge the result, show where the report lies."""

from __future__ import annotations

import sys
from pathlib import Path

OUT = Path("runs/demo")
NETWORKS = 4  # an arm: more would take over five minutes on two cores that have no compiler


def main() -> None:
    """Run the main job, or report it where it has finished before; write summary.json and print a small table."""
    from attar import api, files
    from attar.errors import AttarError, Interrupted

    try:
        result = api.run_result("dm", data="fashion-mnist-mini", ipc=10, out=OUT)
        judged = OUT / "evaluation.json"
        outcome = files.read_object(judged) if judged.exists() else api.evaluate(OUT, networks=NETWORKS)
    except (AttarError, Interrupted) as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    accuracy = {arm["name"]: arm["accuracy"] for arm in outcome["arms"]}
    seconds = result.seconds + sum(arm["seconds"] * outcome["networks"] for arm in outcome["arms"])
    summary = {**accuracy, "networks": outcome["networks"], "seconds": round(seconds, 3)}
    files.write_json(OUT / "summary.json", summary)
    _show(outcome)
    print(f"\nreport: {(OUT / 'report.html').resolve()}")


def _show(outcome: dict) -> None:
    from attar import terminal

    terminal.show_arms(outcome)


if __name__ == "__main__":
    main()
