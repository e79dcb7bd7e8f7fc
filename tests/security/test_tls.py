"""TLS: a server is verified before anything is sent; own authorities and certificates work."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.http_front import Front
from tests.support.project import Project

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Certificates:
    """An authority of our own, and what it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
        )
        self.ca = str(folder / "ca.pem")

    def make(self, name: str, subject: str) -> tuple[str, str]:
        """Sign a certificate for a subject (`IP:…`, `DNS:…`); return its file and its key's."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        )
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


class TlsPort:
    """A port that ends TLS and hands what it deciphers to the front."""

    def __init__(self, front: Front, context: ssl.SSLContext) -> None:
        self.front = front
        self.context = context
        self.deciphered = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with (
            suppress(OSError),
            self.context.wrap_socket(raw, server_side=True) as peer,
            socket.create_connection((self.front.host, self.front.port)) as behind,
        ):
            back = threading.Thread(target=self._copy, args=(behind, peer), daemon=True)
            back.start()
            self._copy(peer, behind, count=True)
            back.join(10)

    def _copy(self, source: socket.socket, target: socket.socket, count: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.deciphered += len(data) if count else 0
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


Serve = Callable[..., tuple[Project, TlsPort]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def serve(tmp_path: Path, certificates: Certificates) -> Iterator[Serve]:
    """Give a function that starts a port with a certificate for a subject, and a project on it."""
    with ExitStack() as stack:

        def started(subject: str = "IP:127.0.0.1", ask: bool = False) -> tuple[Project, TlsPort]:
            # Who shows a certificate is known by it, and sends no password.
            password = "" if ask else "secret"
            front = Front(tmp_path / "server", user="ledger", password=password)
            stack.enter_context(front)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificates.make("server", subject))
            if ask:
                context.load_verify_locations(certificates.ca)
                context.verify_mode = ssl.CERT_REQUIRED
            port = TlsPort(front, context)
            endpoint = f"https://127.0.0.1:{port.port}"
            env = front.env() | {"CLICKHOUSE_ENDPOINT": endpoint}
            return Project(tmp_path / "project", env), port

        yield started


def refused(project: Project, port: TlsPort) -> None:
    """Neither the loader nor dbt goes on, and not a byte of theirs was deciphered."""
    done = project.loader("init", expect=3)
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert project.dbt("debug", "--connection", expect=None).returncode != 0
    assert port.deciphered == 0


def test_a_server_is_verified(serve: Serve, certificates: Certificates) -> None:
    project, port = serve()
    refused(project, port)
    # An authority is given to both: dbt's client has no setting for it, and takes OpenSSL's.
    project.env |= {"CLICKHOUSE_CA_CERT": certificates.ca, "SSL_CERT_FILE": certificates.ca}
    project.loader("init")
    project.dbt("debug", "--connection")
    assert port.deciphered > 0


def test_another_hosts_certificate_is_refused(serve: Serve, certificates: Certificates) -> None:
    project, port = serve("DNS:elsewhere.example")
    project.env |= {"CLICKHOUSE_CA_CERT": certificates.ca, "SSL_CERT_FILE": certificates.ca}
    refused(project, port)


def test_a_server_may_ask_for_a_certificate(serve: Serve, certificates: Certificates) -> None:
    project, port = serve(ask=True)
    project.env |= {"CLICKHOUSE_CA_CERT": certificates.ca, "SSL_CERT_FILE": certificates.ca}
    refused(project, port)
    cert, key = certificates.make("client", "DNS:client")
    project.env |= {"CLICKHOUSE_CLIENT_CERT": cert, "CLICKHOUSE_CLIENT_KEY": key}
    project.loader("init")
    project.dbt("debug", "--connection")
