"""The commands of ``nonn-sim``, one module each: ``SUMMARY``, ``add_arguments(parser)`` and ``run(args)``.

At module level they import next to nothing, so that ``nonn-sim --help`` is quick.
"""
