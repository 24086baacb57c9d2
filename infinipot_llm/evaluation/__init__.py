"""Measuring what a pot keeps: policies, needles, question answering, beside the full cache."""
