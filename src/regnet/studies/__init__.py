"""The paper's method: train populations of design spaces, compare the spaces, and refine one.

The results of a study are in one SQLite file, with a journal beside it. This package may import
`training`, `selection`, `executors`, `spaces` and the packages below; only the command line imports
it.
"""

from regnet.studies import statistics
from regnet.studies.analysis import Analysis, SpaceResult, analyze, refine
from regnet.studies.custom import sample_networks
from regnet.studies.population import (
    Population,
    counts,
    extend,
    init,
    load,
    read,
    recover,
    resume,
)
from regnet.studies.report import render, save_plots
from regnet.studies.search import Searched, search_with_data
from regnet.studies.study import Given, Study
from regnet.studies.tables import read_table, write_table

__all__ = [
    "Analysis",
    "Given",
    "Population",
    "Searched",
    "SpaceResult",
    "Study",
    "analyze",
    "counts",
    "extend",
    "init",
    "load",
    "read",
    "read_table",
    "recover",
    "refine",
    "render",
    "resume",
    "sample_networks",
    "save_plots",
    "search_with_data",
    "statistics",
    "write_table",
]
