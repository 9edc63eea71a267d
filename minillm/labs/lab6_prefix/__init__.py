"""Lab 6, a prefix cache that proves its hits.

lab.py                  the tasks, and the file's cache in the engine
cache_user.py           what the cases do with a cache
encode_cases.py         6.1 keys as bytes              match_cases.py          6.4 the longest chain
digest_cases.py         6.2 the key of a block         publish_cases.py        6.5 a block becomes findable
find_cases.py           6.3 the proof                  release_cases.py       6.6 unused, but kept
find_mistakes.py        6.3 known mistakes             evict_cases.py          6.7 make room
"""
