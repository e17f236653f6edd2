"""Evaluation: responses sampled and graded, their metrics with intervals, files, pages, and comparisons."""
