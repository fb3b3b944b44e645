"""kubectl on a pseudo-terminal, as a user sees it."""
import fcntl, os, pty, select, signal, struct, subprocess, termios, time

from suite import KUBECONFIG, SOON_S, Wrong


class Terminal:
    def __init__(self, *args):
        self.fd, own = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(["kubectl", "--kubeconfig", KUBECONFIG, *args], stdin=own, stdout=own, stderr=own, start_new_session=True)
        os.close(own)
        self.shown = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def read(self):
        """The output available within a moment; whether the other end is still open."""
        if not select.select([self.fd], [], [], 0.2)[0]:
            return True
        try:
            self.shown += os.read(self.fd, 4096).decode(errors="replace")
        except OSError:
            return False
        return True

    def sees(self, wanted, within=SOON_S):
        """Waits until that is shown, and drops all output up to its end."""
        deadline = time.monotonic() + within
        while wanted not in self.shown:
            if not self.read() or time.monotonic() > deadline:
                self.process.kill()
                raise Wrong(f"{wanted!r} is not shown: {self.shown!r}")
        self.shown = self.shown.split(wanted, 1)[1]

    def ended(self, within=SOON_S):
        """The exit code."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            self.read()
            if time.monotonic() > deadline:
                self.process.kill()
                raise Wrong(f"kubectl goes on: {self.shown!r}")
        os.close(self.fd)
        return self.process.returncode
