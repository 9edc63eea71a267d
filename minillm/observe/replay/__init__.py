"""The replay page: a recorded run as one HTML file that needs nothing else."""
