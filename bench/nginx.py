"""nginx in two parts: as the plain reverse proxy to compare with, and as upstream and facilitator that cost next to
nothing. One process each, no log, no buffering of answers.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.machine import OTHERS_CORE, SUBJECT_CORE
from bench.offer import ANSWER, MODEL, NETWORK
from bench.programs import HOST, Program, free_port, running

_HTTP = """
daemon off;
master_process off;
pid {folder}/{name}.pid;
error_log stderr warn;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 100000000;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    large_client_header_buffers 8 32k;
{body}
}}
"""

_NEIGHBOURS = """
    server {{
        listen {host}:{port} backlog=1024;
        location = /v1/models {{ return 200 '{{"object":"list","data":[{{"id":"{model}","object":"model"}}]}}'; }}
        location = /v1/chat/completions {{ return 200 '{answer}'; }}
        location = /verify {{ return 200 '{{"isValid":true}}'; }}
        location = /settle {{ return 200 '{{"success":true,"transaction":"0x{transaction}","network":"{network}"}}'; }}
        location = /supported {{ return 200 '{{"kinds":[{kinds}],"extensions":[],"signers":{{}}}}'; }}
        location / {{ return 404; }}
    }}
"""

_PROXY = """
    upstream model {{ server {upstream}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen {host}:{port} backlog=1024;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
"""


def nginx_path() -> str | None:
    """The program, which Debian keeps where not everybody looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


@contextmanager
def neighbours(folder: Path) -> Iterator[Program]:
    """Upstream with a fixed plain answer, and a facilitator that says yes to everything at once, v1 and v2."""
    kinds = ",".join(
        f'{{"x402Version":{version},"scheme":"exact","network":"{network}"}}'
        for version, network in ((2, NETWORK.caip2), (1, NETWORK.name))
    )
    port = free_port()
    body = _NEIGHBOURS.format(
        host=HOST, port=port, model=MODEL, answer=ANSWER, transaction="ab" * 32, network=NETWORK.caip2, kinds=kinds
    )
    with _nginx("neighbours", body, port, OTHERS_CORE, folder) as program:
        yield program


@contextmanager
def proxy(name: str, upstream: Program, folder: Path) -> Iterator[Program]:
    """nginx as a reverse proxy that sells nothing."""
    port = free_port()
    body = _PROXY.format(host=HOST, port=port, upstream=f"{HOST}:{upstream.port}")
    with _nginx(name, body, port, SUBJECT_CORE, folder) as program:
        yield program


@contextmanager
def _nginx(name: str, body: str, port: int, core: int, folder: Path) -> Iterator[Program]:
    config = folder / f"{name}.conf"
    config.write_text(_HTTP.format(folder=folder, name=name, body=body))
    command = [nginx_path() or "nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]
    with running(command, port=port, core=core, log=folder / f"{name}.log") as program:
        yield program
