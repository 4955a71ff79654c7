"""Who works through a list of tasks: this process, processes of this machine, Ray, or SLURM.

Executors know nothing of what they run; they may import `devices` and the rooms below, and every
room above may import them.
"""

from regnet.executors.base import Died, Executor, InProcess
from regnet.executors.pool import ProcessPool

__all__ = ["Died", "Executor", "InProcess", "ProcessPool"]
