"""The scheduler: which job runs when, on what, and what is recorded when it does not come back.

``loop`` decides, ``packing`` is its policy, an ``executor`` runs the work (``local``: processes of this machine,
forked by ``forkserver`` and set up by ``child``), ``attempts`` puts what comes back into the spool, ``events`` tells
the hooks.
"""
