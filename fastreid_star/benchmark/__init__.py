"""Speed and memory, each figure beside its own limit, measured side by side in the same run.

:mod:`fastreid_star.benchmark.parts` lists what is measured; ``tools/benchmark.py`` runs it, docs/performance.md says
how and what came out.
"""
