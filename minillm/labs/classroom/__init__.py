"""A class hands in its labs: sixty files, some damaged, all to be marked by the same rules.

finding     submissions.py   who handed in which file, in folders, flat files or zips
            naming.py        the student and the lab in a file's name
            unpack.py        zips, safely
            reading.py       whether a file can be checked at all
marking     grade.py         every submission, in parallel; old results are used again
            pool.py          the processes that check
            worker.py        one of them
            record.py        the result of one submission on disk
showing     gradebook.py     grades.csv
            feedback.py      a report in Markdown for each submission
"""
