"""Scoring: wer.py (errors and confidence intervals), reports.py (files and tables), decode.py (checkpoint → table)."""
