"""The honest benchmark: what is measured, how, and on which machine, in one document."""
