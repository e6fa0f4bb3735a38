#!/usr/bin/env bash
# Run the test suite. Tests that need what this machine lacks are deselected, and named before the run.
set -euo pipefail
cd "$(dirname "$0")/.."

lacking=()
without() {
    lacking+=("$1")
    echo "test: the tests marked '$1' are deselected: $2"
}

found=
for browser in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$browser" >/dev/null && found=$browser && break
done
[ -n "$found" ] || without browser "no Chromium on the path (Debian: apt-get install chromium)"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    without compiler "no C++ compiler on the path (Debian: apt-get install g++)"
[ -f /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] && [ -f /usr/share/unicode/emoji/emoji-test.txt ] &&
    [ -d /usr/share/backgrounds/mate/nature ] ||
    without pictures "lacks Debian's fonts-noto-color-emoji, unicode-data or mate-backgrounds"
[ "$(id -u)" -ne 0 ] || without other_uid "running as root, who may write everywhere"

expression=
for name in ${lacking[@]+"${lacking[@]}"}; do # the form that old bash takes for an empty list
    expression="${expression:+$expression and }not $name"
done

# Two threads on two busy cores make tiny networks ten times slower.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest ${expression:+-m "$expression"} "$@"
