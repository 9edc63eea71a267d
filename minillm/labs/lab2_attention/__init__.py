"""Lab 2, rotary positions and grouped-query attention.

lab.py                  the tasks, and the file's parts in the engine
rope_cases.py           2.1 frequencies, 2.2 rotation
attention_cases.py      2.3 to 2.6 attention
attention_mistakes.py   its known mistakes
costs.py                bounds of operations and bytes
"""
