"""Sharing a model: its repository on the Hub and its card, quantised variants, exports and serving."""
