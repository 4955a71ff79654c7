"""The paper's method: sample a design space, train the population, compare, refine, search."""
