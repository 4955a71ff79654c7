"""Executors: run tasks in this process, in processes on this machine, on Ray, or on SLURM.

Executors know nothing about what they run. They may import `devices` and the packages below it, and
every package above may import them.
"""

from regnet.executors.base import Died, Executor, InProcess
from regnet.executors.pool import ProcessPool

__all__ = ["Died", "Executor", "InProcess", "ProcessPool"]
