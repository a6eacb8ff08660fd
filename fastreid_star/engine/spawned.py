"""What a process spawned by a fast-reid script begins with: the script again, with the plugin first.

Python starts such a process by running its parent's main module as ``__mp_main__``, before it unpickles what it is to
do. :mod:`fastreid_star.engine.script` gives the script this module's name: the plugin comes before the script's
imports, and the script's functions and classes are where pickle looks for them.
"""

from fastreid_star.engine.script import execute

if __name__ == "__mp_main__":
    globals().update(vars(execute("__mp_main__")))
