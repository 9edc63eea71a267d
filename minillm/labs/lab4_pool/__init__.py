"""Lab 4, the block pool.

lab.py                  the tasks, and the file's pool in the engine
pool_cases.py           how a case of a pool's methods is made
allocate_cases.py       4.1 allocate
share_cases.py          4.2 share
free_cases.py           4.3 free
check_cases.py          4.4 the check before anything changes
sample_cases.py         4.5 what n samples of a prompt need
"""
