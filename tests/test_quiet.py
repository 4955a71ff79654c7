"""What belongs to the whole process is given back as it was."""

import logging
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from regnet.quiet import quiet


def test_threads_leave_filters_and_levels_as_they_were():
    names = ("tests.one", "tests.two")
    before = list(warnings.filters)
    levels = [logging.getLogger(name).level for name in names]

    def work(seed):
        rng = random.Random(seed)
        for _ in range(50):
            name = rng.choice(names)
            with quiet(name):
                assert logging.getLogger(name).level == logging.ERROR
                warnings.warn("not to be seen", stacklevel=1)
                time.sleep(rng.uniform(0, 1e-3))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(warnings.filters) == before
    assert [logging.getLogger(name).level for name in names] == levels
