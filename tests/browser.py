"""Debian's Chromium, headless: what a page is like when it is looked at, told by a script of the test's own."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
)
# `seen` is what comes back. `look(seen)` is the test's own script; it may wait.
PROBE = """<script>
(() => {
  const errors = [];
  window.addEventListener("error", (event) => errors.push(event.message));
  window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
  for (const kind of ["error", "warn"]) console[kind] = (...told) => errors.push(told.join(" "));
  for (const kind of ["alert", "confirm", "prompt"]) window[kind] = () => errors.push(kind);
  const look = async (seen) => { LOOK };
  window.addEventListener("load", async () => {
    const svgs = [...document.querySelectorAll("main svg")];
    const seen = {
      errors, figures: svgs.length,
      flat: svgs.filter((svg) => svg.getBoundingClientRect().height < 50).length,
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      dark: matchMedia("(prefers-color-scheme: dark)").matches,
    };
    try { await look(seen); } catch (error) { errors.push(String(error.stack)); }
    const images = [...document.images].filter((image) => image.loading !== "lazy");
    seen.broken = images.filter((image) => !image.complete || !image.naturalWidth).length;
    document.title = "PROBE" + JSON.stringify(seen) + "END";
  });
})();
</script></head>"""


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine")
    return found


def look(page: str, folder: Path, *, width: int, script: str = "", dark: bool = False) -> dict[str, Any]:
    """Opens the page as a file and runs the script in it: errors, figures, what is wider than the screen, and more."""
    file = folder / "page.html"
    file.write_text(page.replace("</head>", PROBE.replace("LOOK", script), 1), encoding="utf-8")
    done = subprocess.run(
        [
            browser(),
            *OPTIONS,
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},900",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = re.search("PROBE(.*?)END", done.stdout)
    assert told, f"the page did not finish: {done.stderr[-500:]}"
    return json.loads(html.unescape(told[1]))
