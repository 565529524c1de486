"""The commands of ``nonn``, one module each: ``SUMMARY``, ``add_arguments(parser)`` and ``run(args)``.

At module level they import next to nothing, so that ``nonn --help`` is quick.
"""
