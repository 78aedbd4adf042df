"""Work for the processes of `demo/test_processes.py`."""

import os
import signal
import time


def work(job, report):
    """Squares; the jobs "fail", "die" and "wait" do as they are told."""
    if job == "fail":
        raise ValueError("no such job")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "wait":
        time.sleep(600)
    report(1)
    report(2)
    return job * job
