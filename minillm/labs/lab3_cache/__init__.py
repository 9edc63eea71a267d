"""Lab 3, the paged cache and the two loops.

lab.py                  the tasks, and the file's parts in the engine
address_cases.py        3.1 blocks, 3.2 slots
cache_cases.py          3.3 write rows to the cache, 3.4 read them
cache_mistakes.py
grow_cases.py           3.5 grow
fork_cases.py           3.6 fork
fork_mistakes.py
loop_cases.py           the input of a loop's cases
loop_mistakes.py        loops that keep something from earlier calls
prefill_cases.py        3.7 prefill
prefill_mistakes.py
decode_cases.py         3.8 decode
decode_mistakes.py
engine_cases.py         3.9 the whole file
"""
