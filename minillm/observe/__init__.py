"""The engine reports what it does as events. Metrics and plots are computed from events only."""
