"""Lab 5, continuous batching with chunked prefill.

lab.py                  the tasks, and the file's scheduler in the engine
plan_cases.py           how a case of a plan is made
rank_cases.py           5.1 rank, 5.2 the waiting line
chunk_cases.py          5.3 the next chunk
preemption_cases.py     5.4 blocks and preemption
schedule_cases.py       5.5 the plan of a step
admission_cases.py      5.6 admission
"""
