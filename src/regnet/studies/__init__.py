"""The paper's method: sample a design space, train the population, compare, refine, search."""

from regnet.studies import statistics
from regnet.studies.analysis import Analysis, SpaceResult, analyze, refine, write_table
from regnet.studies.distributions import Distribution
from regnet.studies.executor import Died, Executor, InProcess, ProcessPool
from regnet.studies.population import (
    Population,
    Study,
    counts,
    extend,
    init,
    load,
    read,
    recover,
    resume,
)
from regnet.studies.report import render, save_plots
from regnet.studies.sampling import Sample, sample
from regnet.studies.space import SPACES, Space, constrained, find_space

__all__ = [
    "SPACES",
    "Analysis",
    "Died",
    "Distribution",
    "Executor",
    "InProcess",
    "Population",
    "ProcessPool",
    "Sample",
    "Space",
    "SpaceResult",
    "Study",
    "analyze",
    "constrained",
    "counts",
    "extend",
    "find_space",
    "init",
    "load",
    "read",
    "recover",
    "refine",
    "render",
    "resume",
    "sample",
    "save_plots",
    "statistics",
    "write_table",
]
