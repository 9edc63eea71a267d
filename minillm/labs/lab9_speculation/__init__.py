"""Lab 9, speculative decoding.

lab.py                  the tasks
coupled_cases.py        9.1 down a tree of drafts
leftover_cases.py       9.2 the draw after the drafts
rejection_cases.py      9.3 accept or replace; known mistakes in rejection_mistakes.py
distribution_cases.py   9.3 the counts of each token
ngram_cases.py          9.4 drafts without a model; known mistakes in ngram_mistakes.py
truncate_cases.py       9.5 truncate
branch_cases.py         9.6 branch and adopt
engine_cases.py         9.7 the file's parts in the engine
"""
