"""The box: an arm64 Debian with systemd and our Debian package, a disk for the spool, a TPM and a shell for the host, in QEMU.

Debian's packages are only unpacked (see `setup`); ours is installed by dpkg, with its maintainer scripts. Emulated: its times
compare with each other, not with a real box.
"""
import shutil
import subprocess
import threading
import time
from pathlib import Path

import guest

HERE = guest.HERE
# The machine, a shell in it, an address, and the disk of the spool.
FILES = {
    "etc/hostname": "box\n",
    "etc/machine-id": "",
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n"
    # A busy host may need minutes for what takes a box seconds.
    "/dev/vdb /var/lib/wardgate ext4 rw,noatime,x-systemd.device-timeout=20min 0 0\n",
    "etc/systemd/network/10-box.network": "[Match]\nDriver=virtio_net\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
    "LinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    # The TPM comes up when the host says so.
    "etc/systemd/system/wardgate-tpm.service.d/patience.conf": "[Service]\nEnvironment=WARDGATE_PATIENCE_S=1200\n",
    "etc/systemd/system/host-shell.service": "[Unit]\nDescription=A shell for the host that tests this box\n"
    "[Service]\nEnvironment=SYSTEMD_COLORS=0\nExecStart=/bin/bash -c 'stty -echo; echo HOST-SHELL; while read -r line; do eval \"$$line\"; done'\n"
    "StandardInput=tty\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyAMA0\n[Install]\nWantedBy=multi-user.target\n",
}
# Terminals that nobody looks at.
MASKED = ("getty.target", "serial-getty@ttyAMA0.service")
TPM_MODULE = "tpm_tis"
MODULES = (*guest.MODULES, TPM_MODULE)
# Where the box has the driver of its TPM when it is told to load it late.
LATE_MODULES = "usr/lib/late-modules"
ROOT_BYTES = 1 << 30
INIT = """#!/bin/busybox sh
# Loads what the emulated devices need, and becomes systemd on the first disk.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mkdir -p /sysroot
$b mkdir -p /proc
$b mount -t proc proc /proc
late=nothing
if $b grep -q late-tpm /proc/cmdline; then late="tpm*"; fi
$b umount /proc
while read -r module; do
    case $module in $late) ;; *) $b insmod "/modules/$module" ;; esac
done </modules/order
while [ ! -b /dev/vda ]; do $b usleep 20000; done
$b mount -t ext4 /dev/vda /sysroot
$b mount -o move /dev /sysroot/dev
exec $b switch_root /sysroot /sbin/init
"""


def make_start(folder):
    """What the kernel starts with."""
    root = folder / "start"
    for name in ("bin", "dev", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(guest.PARTS / "arm64/bin/busybox", root / "bin")
    guest.copy_modules(root / "modules", MODULES)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    guest.pack(root, folder / "start.cpio")


def _settle(root):
    """What the scripts of Debian's packages would have done, as far as the box needs it."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    users = [line.split(":")[0] for line in (root / "etc/passwd").read_text().splitlines()]
    (root / "etc/shadow").write_text("".join(f"{user}:*:19000:0:99999:7:::\n" for user in users))
    (root / "etc/shadow").chmod(0o640)
    (root / "var/lib/dpkg/info").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()


def _install(root, package):
    """Our package, by dpkg; what it depends on is there, but dpkg has not installed it."""
    shutil.copy(package, root / "wardgate.deb")
    inside = [HERE / "with-arm", "chroot", root, "/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin"]
    for command in (
        ["systemd-sysusers"],
        ["dpkg", "--install", "--force-depends", "--force-bad-path", "--force-unsafe-io", "/wardgate.deb"],
        ["systemctl", "enable", "--quiet", "systemd-networkd", "host-shell"],
    ):
        done = subprocess.run([*inside, *command], capture_output=True, text=True)
        if done.returncode:
            raise guest.Fault(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    (root / "wardgate.deb").unlink()


def make_root(folder, package, configuration):
    """The disk of the system, with the package installed and our configuration in it; and an empty one for the spool."""
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xpf", guest.PARTS / "box.tar", "-C", root, "--exclude=./dev/*"], check=True)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root / LATE_MODULES).mkdir()
    guest.copy_modules(root / LATE_MODULES, (TPM_MODULE,))
    _settle(root)
    _install(root, package)
    (root / "etc/wardgate/gateway.toml").write_text(configuration)
    with open(folder / "root.img", "wb") as image:
        image.truncate(ROOT_BYTES)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", root, folder / "root.img"], check=True)
    shutil.rmtree(root)
    guest.make_disk(folder / "spool.img")


class Box:
    """One life of it, with the TPM whose state is in the folder `tpm`; when that is late, `load_tpm` brings it up."""

    def __init__(self, folder, tpm, late_tpm=False):
        self.late_tpm = late_tpm
        self.folder, self.lines, self.changed = Path(folder), [], threading.Condition()
        self.tpm = self._start_tpm(tpm)
        self.begun = time.monotonic()
        self.port = guest.free_port()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.machine = subprocess.Popen(self._command(tpm), **pipes, start_new_session=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.power_off()

    @staticmethod
    def _start_tpm(tpm):
        tpm.mkdir(exist_ok=True)
        state = ["--tpmstate", f"dir={tpm},mode=0600", "--log", f"file={tpm}/log,level=1"]
        control = ["--ctrl", f"type=unixio,path={tpm}/sock", "--terminate"]
        process = subprocess.Popen(["swtpm", "socket", "--tpm2", *state, *control])
        while not (tpm / "sock").exists():
            if process.poll() is not None:
                raise guest.Fault("swtpm did not start")
            time.sleep(0.02)
        return process

    def _command(self, tpm):
        def disk(name):
            file = f"if=none,id={name},format=raw,file={self.folder}/{name}.img"
            return ["-drive", file, "-device", f"virtio-blk-pci,drive={name}"]

        return [
            "qemu-system-aarch64", "-nodefaults", "-M", "virt", "-cpu", "cortex-a53", "-smp", "1", "-m", str(guest.MEMORY_MB),
            "-accel", "tcg", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", guest.PARTS / "vmlinuz", "-initrd", self.folder / "start.cpio",
            "-append", "console=ttyAMA0 quiet loglevel=1 panic=-1 systemd.show_status=0 systemd.log_target=journal "
            f"systemd.default_timeout_start_sec=1200 {'late-tpm' * self.late_tpm}",
            *disk("root"), *disk("spool"), "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=tpm,path={tpm}/sock", "-tpmdev", "emulator,id=tpm,chardev=tpm",
            "-device", "tpm-tis-device,tpmdev=tpm",
            "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:2575", "-device", "virtio-net-pci,netdev=net,romfile=",
        ]  # fmt: skip

    def _listen(self):
        for line in self.machine.stdout:
            with self.changed:
                self.lines.append(line.decode(errors="replace").strip("\r\n"))
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def _wait(self, start, matches, within_s):
        """The number of the first line from `start` on that matches."""
        until = time.monotonic() + within_s
        with self.changed:
            while True:
                found = next((at for at in range(start, len(self.lines)) if matches(self.lines[at])), None)
                if found is not None:
                    return found
                if self.machine.poll() is not None or time.monotonic() > until:
                    raise guest.Fault("the box does not answer:\n" + "\n".join(self.lines[-20:]))
                self.changed.wait(0.5)

    def wait_until_up(self, within_s=900):
        self._wait(0, lambda line: "HOST-SHELL" in line, within_s)
        return time.monotonic() - self.begun

    def load_tpm(self):
        self.say(f"while read -r module; do insmod /{LATE_MODULES}/$module; done </{LATE_MODULES}/order")

    def ask(self, command, within_s=300):
        """Runs it as root in the box. Returns how it ended and what it said."""
        start = len(self.lines)
        self.machine.stdin.write(f'{{ {command}; }} 2>&1; printf "\\n<ended %s>\\n" $?\n'.encode())
        self.machine.stdin.flush()
        end = self._wait(start, lambda line: line.startswith("<ended "), within_s)
        return int(self.lines[end][7:-1]), "\n".join(self.lines[start:end]).strip()

    def say(self, command):
        return self.ask(command)[1]

    def power_off(self):
        """As a person would; by force when it does not."""
        try:
            self.machine.stdin.write(b"systemctl --no-block start poweroff.target\n")
            self.machine.stdin.flush()
            self.machine.wait(timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            self.machine.kill()
            self.machine.wait()
        try:
            self.tpm.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.tpm.kill()
            self.tpm.wait()
