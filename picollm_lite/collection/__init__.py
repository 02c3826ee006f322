"""Collecting preferences: sample answers, pair them, collect labels, aggregate, split, export."""
