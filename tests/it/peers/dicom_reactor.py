"""pynetdicom's reactor, made to say truly when it pauses.

Whoever sends a request or a release waits until the reactor pauses. pynetdicom 3.0.4 says that it pauses a moment before it does
(the reactor then throws away an answer that comes within a millisecond), and says that it does not when a report was served in
a thread of its own meanwhile (the release then waits for ever).
"""
import threading

from pynetdicom.association import Association


class Checkpoint(threading.Event):
    """Where the reactor pauses while a request waits for its answer."""

    blocked = False

    def wait(self, timeout=None):
        while True:
            while not self.is_set():
                self.blocked = True
                super().wait(1)
            self.blocked = False
            if self.is_set():  # else whoever cleared it has just read that we pause
                return True


class Truthful(Association):
    """An association whose word about its pause comes from the checkpoint, whatever else was written down."""

    @property
    def _is_paused(self):
        return self._reactor_checkpoint.blocked or not self.is_established or not self.is_alive()

    @_is_paused.setter
    def _is_paused(self, said):
        pass


def truthful(association):
    """Makes an established `association` truthful."""
    association._reactor_checkpoint = Checkpoint()
    association._reactor_checkpoint.set()
    association.__class__ = Truthful
