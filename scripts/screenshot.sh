#!/bin/sh
# Takes screenshots of a page that `favonius report` wrote, in light and dark mode.
# usage: screenshot.sh REPORT.html OUT [HEIGHT]     writes OUT-light.png and OUT-dark.png
set -eu
page=$(realpath "$1")
out=$2
height=${3:-4200}
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        browser=$name
        break
    fi
done
[ -n "${browser:-}" ] || { echo "no Chromium was found" >&2; exit 1; }
for mode in light dark; do
    # Blink's values of the preferred color scheme.
    scheme=$([ "$mode" = dark ] && echo 0 || echo 1)
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="1360,$height" \
        --blink-settings="preferredColorScheme=$scheme" --screenshot="$out-$mode.png" "file://$page" 2>/dev/null
done
