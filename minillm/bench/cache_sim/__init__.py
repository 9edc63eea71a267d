"""A cache simulator: how many prompt blocks of a recorded trace would a KV cache have found?

The keys and values of a prompt are kept in blocks of tokens (512 in Mooncake's traces). A later prompt that
begins with the same tokens can use them again, and its prefill is shorter by that much. Memory is limited, so
a policy chooses what is evicted. On many replicas a router also chooses which cache a prompt meets.

    prompt of the trace   [ 0 ][ 7 ][ 8 ][ 9 ][ 41 ]         hash ids: equal ids are equal prefixes
    cache                   0    7         9                  block 8 was evicted
                          hit  hit  miss miss miss            2 of 5 blocks hit; 9 is there and useless

A hit is part of the longest cached prefix. A block counts only if all blocks before it hit, because a block
is computed from everything before it, and prefill starts once. So the hit rate is hits divided by the prompt
blocks of all requests. After the look-up all blocks of the prompt are used; absent ones are inserted. The
last block is used first, so the end of a prompt is evicted before its beginning (memory/prefix_cache.py).

A block of 512 tokens of Llama 3 8B in bfloat16 takes 64 MiB: 1,000 blocks fill a large GPU, 100,000 blocks
take 6 TiB.

    trace.py      reads a trace in Mooncake's format       generate.py   makes one with known new blocks
    policies.py   LRU                                      s3_fifo.py    S3-FIFO
    replay.py     one cache on a trace                     routing.py    many replicas, and which one is asked
    report.py     all figures of `minillm bench cache`

Papers: Qin et al., "Mooncake" (arXiv 2407.00079), the trace and its format; Yang et al., "FIFO queues are all
you need for cache eviction" (SOSP 2023).

Left out: time. A block is there as soon as its request was routed, and it may be evicted while that request
still runs. No block is fetched from another replica or from disk. Answers count only when they come back in
the next prompt. A last block that is only partly full counts as one, as in the trace.
"""
