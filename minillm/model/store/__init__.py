"""Models in the cache: which there are, how one gets there, and how it is removed.

folder.py      the folder of models, its lock, what each came from
published.py   the models that `minillm pull` knows by name
download.py    fetching a file and comparing it with its published digest
pull.py        a published model into the cache
gguf.py        a user's GGUF file into the cache
"""
