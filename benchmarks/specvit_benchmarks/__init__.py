"""Measurements behind the numbers of the documents: each module measures and writes JSON to `benchmarks/results`."""
