"""Lab 9, speculative decoding.

lab.py                  the tasks
coupled_cases.py        9.1 down a tree of drafts
leftover_cases.py       9.2 the draw after the drafts
rejection_cases.py      9.3 accept or replace
distribution_cases.py   9.3 the counts of each token
ngram_cases.py          9.4 drafts without a model
rollback_cases.py       9.5 truncate, 9.6 branch and adopt
engine_cases.py         9.7 the file's parts in the engine
"""
