"""Lab 1, sampling and streaming text.

lab.py                  the tasks, and the file's parts in the engine
penalty_cases.py        1.1 repetition penalty         draw_cases.py           1.4 the draw
top_cases.py            1.2 top-k and top-p            stop_cases.py           1.5 stop strings
filter_cases.py         1.3 the chain of filters       detokenizer_cases.py    1.6 text from tokens
"""
