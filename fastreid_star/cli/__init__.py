"""The console command ``fastreid-star``: parsers here, the work in the other packages.

No module here imports torch or fast-reid at its top: help texts appear at once.
"""
