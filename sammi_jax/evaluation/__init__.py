"""Metrics, and the evaluator that runs a segmenter over a data set."""

from sammi_jax.evaluation.metrics import confusion_matrix, scores

__all__ = ["confusion_matrix", "scores"]
