"""Lab 11, tenants: scoped caching and quotas under a flood.

lab.py              the tasks
scope_cases.py      11.1 whose block it is             reclaim_cases.py    11.5 whose cached blocks go
seed_cases.py       11.2 default seeds                 quota_cases.py      11.6 who is held back
room_cases.py       11.3 the room of a share           queue_cases.py      11.7 who is refused
trim_cases.py       11.4 what a share may keep         worlds.py           11.8 four worlds
share_stage.py      shares in given states             quota_stage.py      requests of tenants
quota_mistakes.py   11.6 known mistakes             queue_mistakes.py   11.7 known mistakes
"""
