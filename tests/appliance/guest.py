"""The guest of the power cuts: Debian's arm64 kernel, a file system in memory with the ARM executable, one disk, one vCPU.

It is emulated, so its times say nothing about a real box; the order of its writes and flushes does. At a cut the disk loses its
power first: what the machine still says in the moment until it is ended too can rest only on flushes that were answered before.
"""
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = HERE.parent / ".appliance"
DISK_BYTES = 192 << 20
MEMORY_MB = 512
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
# The executable's, below /lib: what it is linked with.
LIBRARIES = (
    "ld-linux-aarch64.so.1",
    "aarch64-linux-gnu/libc.so.6",
    "aarch64-linux-gnu/libm.so.6",
    "aarch64-linux-gnu/libgcc_s.so.1",
)


class Fault(Exception):
    """The rig itself does not work; says nothing about the promise."""


def make_disk(path):
    with open(path, "wb") as image:
        image.truncate(DISK_BYTES)
    # No lazy initialisation: the kernel would go on writing tables behind our back.
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", path], check=True)


def configuration(path, **names):
    """Our gateway.toml with these names in place of those in capitals."""
    text = (HERE / "gateway.toml").read_text()
    for name, value in names.items():
        text = text.replace(name, str(value))
    Path(path).write_text(text)


def copy_modules(folder, modules):
    """Copies these kernel modules and those that they need, and writes the order in which they must be loaded."""
    kernel = (PARTS / "guest.done").read_text().strip()
    order = []
    for module in modules:
        command = ["modprobe", "-d", PARTS / "arm64", "-S", kernel, "--show-depends", module]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in listed.splitlines():
            if line.startswith("insmod") and (file := Path(line.split()[1])).name not in order:
                order.append(file.name)
                shutil.copy(file, folder)
    (folder / "order").write_text("".join(name + "\n" for name in order))


def pack(root, path):
    """Makes an initial file system in memory of a folder, which goes."""
    names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
    with open(path, "wb") as archive:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=names, stdout=archive, check=True)
    shutil.rmtree(root)


def make_memory_disk(executable, key, path):
    """The guest's whole root: busybox, the C library, the modules, wardgate, its configuration and its key."""
    root = Path(path).with_suffix(".root")
    for name in ("bin", "dev", "proc", "sys", "etc/wardgate", "lib/aarch64-linux-gnu", "modules", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(PARTS / "arm64/bin/busybox", root / "bin")
    for name in LIBRARIES:
        shutil.copy(PARTS / "arm64/lib" / name, root / "lib" / name)
    copy_modules(root / "modules", MODULES)
    shutil.copy(HERE / "init", root / "init")
    shutil.copy(executable, root / "usr/bin/wardgate")
    if shutil.which("aarch64-linux-gnu-strip"):
        subprocess.run(["aarch64-linux-gnu-strip", root / "usr/bin/wardgate"], check=True)
    names = {"CONTROL_SOCKET": "/run/wardgate/control.sock", "SPOOL": "/spool", "KEY": "/etc/wardgate/key"}
    names |= {"MONITORS_LISTEN": "0.0.0.0:2575", "ANALYSERS_LISTEN": "0.0.0.0:2576", "UPSTREAM_HOST": "10.0.2.2"}
    configuration(root / "etc/wardgate/gateway.toml", **names)
    (root / "etc/wardgate/key").write_bytes(key)
    (root / "etc/wardgate/key").chmod(0o600)
    pack(root, path)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Guest:
    """One life of the machine and of its disk, from power on to power off."""

    def __init__(self, folder, ways, ignore_flush=False, log=None):
        self.folder = Path(folder)
        self.said, self.changed = [], threading.Condition()
        self._start_disk(ignore_flush, log)
        self._start_machine(ways)
        threading.Thread(target=self._listen, daemon=True).start()

    def _start_disk(self, ignore_flush, log):
        path = self.folder / "disk.sock"
        path.unlink(missing_ok=True)
        options = ["--ignore-flush"] * ignore_flush + ["--log", log] * bool(log)
        command = [HERE / "disk.py", path, self.folder / "disk.img", *options]
        self.disk = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while not path.exists():
            if self.disk.poll() is not None:
                raise Fault("the disk did not start")
            time.sleep(0.01)

    def _start_machine(self, ways):
        """The ports to the guest are chosen by us and may be taken by another program before qemu has them: then others."""
        for _ in range(5):
            # Where its sources listen, one of each way.
            self.ports = [free_port() for _ in ways]
            # In a session of its own, as the machine of somebody else: an interrupt of the rig is no power cut, and the kernel
            # gives each box its share of a busy host.
            self.machine = subprocess.Popen(
                self._command(*(way.engine.port for way in ways)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            first = self.machine.stdout.readline()
            if first:
                self.said.append(first.decode(errors="replace").strip())
                return
            error = self.machine.stderr.read().decode(errors="replace")
        self.disk.kill()
        raise Fault(f"qemu ends at once: {error}")

    def _command(self, engine, archive):
        return [
            "qemu-system-aarch64", "-nodefaults", "-M", "virt", "-cpu", "cortex-a53", "-smp", "1", "-m", str(MEMORY_MB),
            "-accel", "tcg", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", PARTS / "vmlinuz", "-initrd", self.folder / "memory.cpio",
            "-append", f"console=ttyAMA0 quiet panic=-1 engine={engine} archive={archive}",
            "-drive", f"if=none,id=spool,format=raw,cache=writeback,file=nbd+unix:///?socket={self.folder}/disk.sock",
            "-device", "virtio-blk-pci,drive=spool", "-device", "virtio-rng-pci",
            "-netdev", "user,id=net" + "".join(f",hostfwd=tcp:127.0.0.1:{on}-:{to}" for on, to in zip(self.ports, (2575, 2576))),
            "-device", "virtio-net-pci,netdev=net,romfile=",
        ]  # fmt: skip

    def _listen(self):
        for line in self.machine.stdout:
            with self.changed:
                self.said.append(line.decode(errors="replace").strip())
                self.changed.notify_all()

    def times_said(self, words):
        return sum(words in line for line in self.said)

    def has_said(self, words):
        return self.times_said(words) > 0

    def runs(self):
        """False once it is known that wardgate does not come back."""
        return self.machine.poll() is None and not self.has_said("guest: ends") and not self.has_said("Kernel panic")

    def wait_until_said(self, words):
        with self.changed:
            while not self.has_said(words) and self.runs():
                self.changed.wait(0.2)
        return self.has_said(words)

    def cut(self, keep, seed, requests=0):
        """The power goes, so many requests to the disk from now. Returns what the disk tells."""
        told, _ = self.disk.communicate(f"cut {keep} {seed} {requests}\n")
        self.machine.kill()
        self.machine.wait()
        return json.loads(told)


def arm_executable(given):
    """The ARM executable: the one that was named, or the one that was built last."""
    found = [Path(given)] if given else sorted(HERE.parents[1].glob("target/arm/aarch64-unknown-linux-gnu/*/wardgate"))
    if not found or not os.access(found[0], os.X_OK):
        raise Fault("there is no ARM executable: build it first, or name one with --wardgate")
    return max(found, key=lambda path: path.stat().st_mtime)
