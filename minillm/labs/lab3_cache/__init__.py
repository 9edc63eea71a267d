"""Lab 3, the paged cache and the two loops.

lab.py                  the tasks, and the file's parts in the engine
address_cases.py        3.1 blocks, 3.2 slots
block_table_cases.py    3.3 grow, 3.4 fork
loop_cases.py           the input of a loop's cases
prefill_cases.py        3.5 prefill
decode_cases.py         3.6 decode
"""
