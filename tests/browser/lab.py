"""A JupyterLab server with settings, kernels and data of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

TOKEN = "t"
START_SECONDS = 180
IDLE = 900  # s
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    # Every cell stays in the page: a test sees outputs that a reader would scroll to.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


class Lab:
    """`python -m jupyterlab` on the folder `root`, with all else under `home`. A context manager.

    The only kernel is this Python, with `env` in its environment. With a `colab` environment the kernel is that one's
    Python, and its front-end extensions come before the installed ones.
    """

    def __init__(self, home: Path, root: Path, env: dict[str, str], *, colab: Path | None = None):
        self.root, self.home, self.outputs = root, home, home / "outputs"
        self.colab = colab is not None
        self.url = f"http://127.0.0.1:{(port := _free_port())}"
        self._command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
            *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={TOKEN}"),
            *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
            # Where the tests were killed, and nobody stops the server: it ends its idle kernels, then itself.
            *(f"--MappingKernelManager.cull_idle_timeout={IDLE}", "--MappingKernelManager.cull_connected=True"),
            f"--ServerApp.shutdown_no_activity_timeout={IDLE}",
        ]
        self._env = {
            # The tests' own MPLBACKEND would keep pyplot's pictures out of a notebook.
            **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
            **env,
            "PICOLLM_OUTPUTS": str(self.outputs),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_PATH": os.pathsep.join(map(str, [home / "data", *([colab / "share/jupyter"] if colab else [])])),
            "IPYTHONDIR": str(home / "ipython"),
        }
        python = str(colab / "bin/python") if colab else sys.executable
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        _write_json(home / "data" / "kernels" / "python3" / "kernel.json", spec)
        _write_json(home / "config" / "labconfig" / "default_setting_overrides.json", SETTINGS)

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def __enter__(self) -> "Lab":
        with self.log.open("w") as log:
            to_log = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._server = subprocess.Popen(self._command, env=self._env, cwd=self.root, **to_log)
        try:
            self._wait_for_start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """A server that is told to stop ends its kernels; a kernel whose server was killed ends by itself."""
        self._server.terminate()
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def ask(self, path: str, method: str = "GET") -> object:
        """What the server's REST API answers."""
        headers = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(f"{self.url}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")

    def end_kernels(self) -> None:
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")

    def _wait_for_start(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._server.poll() is None:
            with contextlib.suppress(OSError):
                self.ask("api/status")
                return
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start; its log ends:\n{self.log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
