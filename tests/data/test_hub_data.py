"""A Hub data set that cannot be had ends in one line: status 8 for the network, 3 for what is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

READ = """
import sys
from peftcli.data.sources import read_rows
from peftcli.errors import PeftcliError
from peftcli.recipe.schema import Source
try:
    next(read_rows(Source(path="someone/something"), streaming=sys.argv[1] == "streaming"))
except PeftcliError as error:
    print(error.exit_status, error)
"""


class NotFound(BaseHTTPRequestHandler):
    """A Hub that has no data set at all."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *args):
        """Say nothing."""


def read(tmp_path, how="loading", **environment):
    settings = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret_of_ours", **environment}
    done = subprocess.run(
        [sys.executable, "-c", READ, how],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_secret_of_ours" not in done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loading", "streaming"])
def test_a_data_set_that_the_hub_does_not_have_is_a_data_error(tmp_path, how):
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        said = read(tmp_path, how, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert said.startswith("3 someone/something: ")
    assert "check the spelling" in said


@pytest.mark.slow
def test_offline_mode_is_a_hub_error(tmp_path):
    said = read(tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("8 someone/something: the data set cannot be fetched")
    assert "HF_HUB_OFFLINE" in said


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_a_hub_error(tmp_path):
    said = read(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("8 someone/something: the data set cannot be fetched")
