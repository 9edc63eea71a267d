"""Lab 12, observing and operating.

lab.py                  the tasks, and the report of an incident with the file's functions
recorder.py             records runs of the engine on a virtual clock
runs.py                 the recorded runs: small ones, and incidents of known cause
collect_cases.py        12.1 request_times
latency_cases.py        12.2 queue, e2e; 12.3 ttft, tpot, itl
percentile_cases.py     12.4 merged_percentile
goodput_cases.py        12.5 goodput
memory_cases.py         12.6 memory_use
incident_cases.py       12.7 diagnose: cases
incident_mistakes.py    12.7 diagnose: known mistakes
"""
