#!/usr/bin/env bash
# Every check that is not a test. All of them run, and the first failure does not hide the others.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" NO_MKDOCS_2_WARNING=1

failed=()
check() {
    local name=$1 log
    shift
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        echo "check: $name ✓"
    else
        echo "check: $name ✗ ($*)"
        cat "$log"
        failed+=("$name")
    fi
    rm -f "$log"
}

check "format" ruff format --check .
check "lint" ruff check .
check "types" mypy
check "import layers" lint-imports
check "versions" python scripts/check_versions.py
check "table of verdicts" python scripts/write_verdicts.py --check
check "documentation" mkdocs build --strict --quiet --site-dir "$(mktemp -d)/site"

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}"
    exit 1
fi
echo "check: all good"
