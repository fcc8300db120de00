"""Imports torch, timm and Accelerate without garbage collection, which saves a fifth of the time.

`fg_ssl_zoo.pretrain` imports this module before everything else. Python's collector starts
after a number of new objects and then visits all of them. These imports create many, and leave
nothing to collect.
"""

import gc

_was_on = gc.isenabled()
gc.disable()
try:
    import accelerate  # noqa: F401
    import timm  # noqa: F401
    import torch  # noqa: F401
finally:
    if not gc.get_freeze_count():  # of the caller, who wants these objects left alone
        gc.freeze()  # both together move new objects to the oldest generation without a visit
        gc.unfreeze()
    if _was_on:
        gc.enable()
