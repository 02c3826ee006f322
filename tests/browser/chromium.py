"""Find a Chromium, or install one where the system's package manager allows it. `make test` runs this; it never fails.

python tests/browser/chromium.py
"""

import os
import shutil
import subprocess

NAMES = ("chromium", "google-chrome-stable", "google-chrome", "chromium-browser")
MAC = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
SECONDS = 600


def find() -> str | None:
    """The first browser that answers; Ubuntu's `chromium-browser` may be a stub that only asks for a snap."""
    for name in (*NAMES, *MAC):
        if (path := shutil.which(name)) and _succeeds([path, "--version"], seconds=30):
            return path
    return None


def install() -> str:
    """Install Chromium, as root or with a sudo that asks for no password. Returns what happened, in one line."""
    if os.name != "posix":
        return "install Chromium or Chrome by hand to run the browser tests"
    become = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if become and not (shutil.which("sudo") and _succeeds(["sudo", "-n", "true"], seconds=10)):
        return "not root and no password-free sudo: install Chromium by hand to run the browser tests"
    if shutil.which("apt-get"):
        apt = [*become, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
        _succeeds([*apt, "update"])
        done = _succeeds([*apt, "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"])
    elif shutil.which("dnf"):
        done = _succeeds([*become, "dnf", "install", "-y", "-q", "chromium"])
    else:
        return "neither apt-get nor dnf here: install Chromium by hand to run the browser tests"
    return "installed Chromium" if done else "the package manager could not install Chromium"


def _succeeds(command: list[str], seconds: int = SECONDS) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    print(f"browser: {find() or install()}")
