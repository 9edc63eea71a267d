"""Load on an engine, as its users make it, and what it does to them: `minillm bench serving --workload NAME`.

arrivals, traces --> workloads --> plan: every request and its time   made before the run, from a seed
                                    |
clock (threads, or a test's own) --> generator --> engine             requests go in at their times
                                    |
                 events and records --> figures --> validity          what was seen, and whether it counts
"""
